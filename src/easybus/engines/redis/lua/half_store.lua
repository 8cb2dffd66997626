#!lua
-- Stores a half, or takes over what stands under its id: its checks and age stay.
-- KEYS: half, all halves, prefix of a scope's.  ARGV: id, scope, due in µs from now, created, names and values of fields
-- Returns 1 if it stood.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local due = string.format('%.0f', now + ARGV[3])
local scope = redis.call('HGET', KEYS[1], 'scope')
local stood = scope and 1 or 0
if scope then
  redis.call('ZREM', KEYS[3] .. scope, ARGV[1])
else
  local created = ARGV[4] == '0' and string.format('%.0f', now) or ARGV[4]
  redis.call('HSET', KEYS[1], 'created', created)
  redis.call('ZADD', KEYS[2], created, ARGV[1])
end
for i = 5, #ARGV, 2 do
  if not scope or ARGV[i] ~= 'checks' then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
redis.call('HSET', KEYS[1], 'scope', ARGV[2], 'due', due)
redis.call('ZADD', KEYS[3] .. ARGV[2], due, ARGV[1])
return stood
