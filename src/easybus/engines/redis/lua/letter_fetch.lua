#!lua
-- Claims letters that are marked for retry, each under a lease and a new fence.
-- KEYS: fences, base.  ARGV: limit, lease in µs.  Returns: {key, fields, history} for each
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local base, found = KEYS[2], {}
local due = redis.call('ZRANGEBYSCORE', base .. ':dm', '-inf', now, 'LIMIT', 0, ARGV[1])
for _, key in ipairs(due) do
  local letter, history = base .. ':d:' .. key, base .. ':dh:' .. key
  redis.call('HSET', letter, 'fence', redis.call('INCR', KEYS[1]))
  redis.call('ZADD', base .. ':dm', now + ARGV[2], key)
  redis.call('RPUSH', history, string.format('{"at":%.6f,"what":"claimed for replay"}', now / 1000000))
  redis.call('LTRIM', history, -100, -1)
  found[#found + 1] = {key, redis.call('HGETALL', letter), redis.call('LRANGE', history, 0, -1)}
end
return found
