#!lua flags=no-writes,allow-oom
-- Counts one queue.  KEYS: queues, base.  ARGV: queue.  Returns {ready, in flight, delayed}, or {} for no such queue.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return {}
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local base = KEYS[2]
local total, due, waiting = redis.call('XLEN', base .. ':s'), 0, 0
for _, kind in ipairs({':z', ':n', ':l'}) do
  local rows, ready = redis.call('ZCARD', base .. kind), redis.call('ZCOUNT', base .. kind, '-inf', now)
  if kind ~= ':z' then
    total = total - rows
  end
  due = due + ready
  if kind ~= ':l' then
    waiting = waiting + rows - ready
  else
    rows = rows - ready
    return {total + due, rows, waiting}
  end
end
