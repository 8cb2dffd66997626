#!lua
-- Keeps a dead letter; one that stands keeps its first failure, and loses its mark and its claim. Edits one, too.
--   letter: hash of fields, and a list of its history   :dt by last failure   :dm marked, by when it may be claimed
-- KEYS: fences, queues with letters, base.  ARGV: queue, key, old key ("" unless it is an edit),
--   what happened, as JSON without its time, number of entries of history, those, then names and values of fields
-- Returns: 1, or 0 where the letter to be edited is not there.
local base, queue, key, old = KEYS[3], ARGV[1], ARGV[2], ARGV[3]
local letter, history = base .. ':d:' .. key, base .. ':dh:' .. key
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
if old ~= '' then
  if redis.call('EXISTS', base .. ':d:' .. old) == 0 then
    return 0
  end
  redis.call('ZREM', base .. ':dt', old)
  redis.call('ZREM', base .. ':dm', old)
  if old ~= key then
    redis.call('RENAME', base .. ':d:' .. old, letter)
    redis.call('DEL', history)
    if redis.call('EXISTS', base .. ':dh:' .. old) == 1 then
      redis.call('RENAME', base .. ':dh:' .. old, history)
    end
  end
end
local entries = tonumber(ARGV[5])
local stands = redis.call('EXISTS', letter) == 1
if not stands then
  for i = 6, 5 + entries do
    redis.call('RPUSH', history, ARGV[i])
  end
end
if stands then
  redis.call('RPUSH', history, string.format('{"at":%.6f,', now / 1000000) .. ARGV[4])
end
redis.call('LTRIM', history, -100, -1)
for i = 6 + entries, #ARGV, 2 do
  local name, value = ARGV[i], ARGV[i + 1]
  if name == 'last_failed' and value == '0' then
    value = string.format('%.0f', now)
  end
  if name == 'first_failed' then
    if not stands then
      if value == '0' then
        value = redis.call('HGET', letter, 'last_failed')
      end
      redis.call('HSET', letter, name, value)
    end
  else
    redis.call('HSET', letter, name, value)
  end
end
redis.call('HSET', letter, 'fence', redis.call('INCR', KEYS[1]), 'marked', 0)
redis.call('ZADD', base .. ':dt', redis.call('HGET', letter, 'last_failed'), key)
redis.call('ZREM', base .. ':dm', key)
redis.call('SADD', KEYS[2], queue)
return 1
