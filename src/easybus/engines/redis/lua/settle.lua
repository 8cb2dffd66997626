#!lua flags=allow-oom
-- Settles deliveries, each only while its lease row stands: id, attempt and owner. An entry goes with its row.
-- KEYS: base.  ARGV: a, member | n, member, delay | e, member, lease | m, member, delay, body ...     times in µs
-- Returns: 1 done, 0 stale, for each.
local base = KEYS[1]
local s, l = base .. ':s', base .. ':l'
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local results, gone, at, last, wake = {}, {}, 1, #ARGV, false
while at <= last do
  local what, member = ARGV[at], ARGV[at + 1]
  local id = string.match(member, '^[^/]+')
  local held = 0
  if what == 'e' then
    if redis.call('ZSCORE', l, member) then
      redis.call('ZADD', l, now + ARGV[at + 2], member)
      held = 1
    end
    at = at + 3
  else
    held = redis.call('ZREM', l, member)
    if what == 'a' then
      if held == 1 then
        gone[#gone + 1] = id
      end
      at = at + 2
    elseif what == 'n' then
      if held == 1 then
        local attempt = string.match(member, '^[^/]+/(%d+)')
        redis.call('ZADD', base .. ':n', now + ARGV[at + 2] + at, id .. '/' .. attempt)
        wake = true
      end
      at = at + 3
    else
      if held == 1 then
        local delay, body = tonumber(ARGV[at + 2]), ARGV[at + 3]
        if delay == 0 then
          redis.call('XADD', s, '*', 'b', body)
        else
          local number = redis.call('INCR', base .. ':c')
          redis.call('ZADD', base .. ':z', now + delay, string.format('%016.0f', number) .. body)
        end
        gone[#gone + 1] = id
        wake = true
      end
      at = at + 4
    end
  end
  results[#results + 1] = held
end
for first = 1, #gone, 1000 do
  redis.call('XDEL', s, unpack(gone, first, math.min(first + 999, #gone)))
end
if wake then
  redis.pcall('PUBLISH', base .. ':w', '')
end
return results
