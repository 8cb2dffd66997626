#!lua
-- Claims the halves of some scopes that are due, oldest due first, or one by its id; each under a fresh token.
-- KEYS: prefix of a half, prefix of a scope's.  ARGV: id or "", limit, lease in µs, start of the tokens, scopes
-- Returns: {id, fields} for each
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local due, found = {}, {}
if ARGV[1] ~= '' then
  local scope = redis.call('HGET', KEYS[1] .. ARGV[1], 'scope')
  if scope then
    due[1] = {ARGV[1], 0, scope}
  end
end
for i = 5, #ARGV do
  local rows = redis.call('ZRANGEBYSCORE', KEYS[2] .. ARGV[i], '-inf', now, 'WITHSCORES',
    'LIMIT', 0, ARGV[2])
  for at = 1, #rows, 2 do
    due[#due + 1] = {rows[at], tonumber(rows[at + 1]), ARGV[i]}
  end
end
table.sort(due, function(a, b)
  if a[2] == b[2] then
    return a[1] < b[1]
  end
  return a[2] < b[2]
end)
local lease = string.format('%.0f', now + ARGV[3])
for i = 1, math.min(#due, ARGV[2]) do
  local id, scope = due[i][1], due[i][3]
  redis.call('HSET', KEYS[1] .. id, 'token', ARGV[4] .. i, 'due', lease)
  redis.call('ZADD', KEYS[2] .. scope, lease, id)
  found[i] = {id, redis.call('HGETALL', KEYS[1] .. id)}
end
return found
