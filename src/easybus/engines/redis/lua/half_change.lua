#!lua flags=allow-oom
-- Removes or postpones a half, only under its token.
-- KEYS: half, all halves, prefix of a scope's.  ARGV: id, token, then nothing, or: delay in µs, checks, parked, error
-- Returns 1 or 0.
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[2] then
  return 0
end
local scope = redis.call('HGET', KEYS[1], 'scope')
if #ARGV == 2 then
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZREM', KEYS[3] .. scope, ARGV[1])
  return 1
end
local time = redis.call('TIME')
local due = string.format('%.0f', time[1] * 1000000 + time[2] + ARGV[3])
redis.call('HINCRBY', KEYS[1], 'checks', ARGV[4])
redis.call('HSET', KEYS[1], 'parked', ARGV[5], 'error', ARGV[6], 'due', due)
redis.call('ZADD', KEYS[3] .. scope, due, ARGV[1])
return 1
