#!lua
-- Marks letters for retry.  KEYS: base.  ARGV: keys.  Returns how many there were.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local base, marked = KEYS[1], 0
for _, key in ipairs(ARGV) do
  local letter, history = base .. ':d:' .. key, base .. ':dh:' .. key
  if redis.call('EXISTS', letter) == 1 then
    redis.call('HSET', letter, 'marked', 1)
    redis.call('ZADD', base .. ':dm', now, key)
    redis.call('RPUSH', history, string.format('{"at":%.6f,"what":"marked for retry"}', now / 1000000))
    redis.call('LTRIM', history, -100, -1)
    marked = marked + 1
  end
end
return marked
