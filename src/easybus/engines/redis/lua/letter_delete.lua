#!lua flags=allow-oom
-- Deletes letters; with a fence only under that.
-- KEYS: queues with letters, base.  ARGV: queue, fence or "", keys.  Returns how many there were.
local base, gone = KEYS[2], 0
for i = 3, #ARGV do
  local key = ARGV[i]
  local letter = base .. ':d:' .. key
  local fence = redis.call('HGET', letter, 'fence')
  if fence and (ARGV[2] == '' or fence == ARGV[2]) then
    redis.call('DEL', letter, base .. ':dh:' .. key)
    redis.call('ZREM', base .. ':dt', key)
    redis.call('ZREM', base .. ':dm', key)
    gone = gone + 1
  end
end
if redis.call('EXISTS', base .. ':dt') == 0 then
  redis.call('SREM', KEYS[1], ARGV[1])
end
return gone
