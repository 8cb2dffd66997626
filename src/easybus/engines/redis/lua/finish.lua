#!lua flags=allow-oom
-- CLAIMED → DONE, each only under its token; and with a base, the delivery acked in the same step.
-- KEYS: base or "", then the keys.  ARGV: for each key: token, keep in ms, member of the delivery
-- Returns 1 or 0 for each: 0 is not the holder's, and neither was done.
local base, results, gone = KEYS[1], {}, {}
for i = 2, #KEYS do
  local at = 3 * (i - 1) - 2
  local value = redis.call('GET', KEYS[i])
  if value and string.sub(value, 1, 1) == 'C' and string.sub(value, 24, 47) == ARGV[at] then
    local digest = string.sub(value, 48, 49 + tonumber(string.sub(value, 48, 49)))
    redis.call('SET', KEYS[i], 'D' .. string.rep('0', 22) .. ARGV[at] .. digest, 'PX', ARGV[at + 1])
    results[#results + 1] = 1
    if base ~= '' and redis.call('ZREM', base .. ':l', ARGV[at + 2]) == 1 then
      gone[#gone + 1] = string.match(ARGV[at + 2], '^[^/]+')
    end
  else
    results[#results + 1] = 0
  end
end
for first = 1, #gone, 1000 do
  local to = math.min(first + 999, #gone)
  redis.call('XACK', base .. ':s', 'easybus', unpack(gone, first, to))
  redis.call('XDEL', base .. ':s', unpack(gone, first, to))
end
return results
