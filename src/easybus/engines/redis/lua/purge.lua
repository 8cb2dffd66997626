#!lua flags=allow-oom
-- Removes up to 1,000 messages of one queue that are not in flight, and nothing newer than when the purge began.
-- KEYS: queues, base.  ARGV: queue, last id ("" at first), delayed ones left
-- Returns: {} no such queue; {removed, last id, delayed ones left}
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return {}
end
local s, z, n, l = KEYS[2] .. ':s', KEYS[2] .. ':z', KEYS[2] .. ':n', KEYS[2] .. ':l'
local function field(reply, name)
  for i = 1, #reply, 2 do
    if reply[i] == name then
      return reply[i + 1]
    end
  end
end
local upto, delayed = ARGV[2], tonumber(ARGV[3])
if upto == '' then
  if redis.call('EXISTS', s) == 0 then
    upto = '0-0'
  else
    upto = field(redis.call('XINFO', 'STREAM', s), 'last-generated-id')
  end
  delayed = redis.call('ZCARD', z)
end
if delayed > 0 then
  local removed = redis.call('ZREMRANGEBYRANK', z, 0, math.min(delayed, 1000) - 1)
  return {removed, upto, removed == 0 and 0 or delayed - removed}
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local ids = {}
for key, to in pairs({[n] = '+inf', [l] = now}) do
  local members = redis.call('ZRANGEBYSCORE', key, '-inf', to, 'LIMIT', 0, 500)
  for _, member in ipairs(members) do
    ids[#ids + 1] = string.match(member, '^[^/]+')
  end
  if #members > 0 then
    redis.call('ZREM', key, unpack(members))
  end
end
if #ids == 0 and redis.call('EXISTS', s) == 1 then
  local from, size, page = '-', 0, nil
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', s)) do
    if field(group, 'name') == 'easybus' then
      from = '(' .. field(group, 'last-delivered-id')
    end
  end
  repeat  -- it reads the bodies too: no more of them at once than a server bears
    page = redis.call('XRANGE', s, from, upto, 'COUNT', size == 0 and 8 or 64)
    for _, entry in ipairs(page) do
      ids[#ids + 1] = entry[1]
      size = size + #entry[2][2]
      from = '(' .. entry[1]
    end
  until #page == 0 or #ids >= 1000 or size >= 4194304
end
if #ids > 0 then
  redis.call('XDEL', s, unpack(ids))
end
return {#ids, upto, 0}
