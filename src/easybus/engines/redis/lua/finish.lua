#!lua flags=allow-oom
-- CLAIMED → DONE, each only under its token; and with a queue's base, the delivery acked in the same step.
-- KEYS: the keys.  ARGV: base or "", then for each key: token, keep in ms, member of the delivery
-- Returns 1 or 0 for each: 0 is not the holder's, and neither was done.
local call, sub = redis.call, string.sub
local base, results, members, done = ARGV[1], {}, {}, {}
local values = call('MGET', unpack(KEYS))
for i, key in ipairs(KEYS) do
  local at, value = 3 * i - 1, values[i]
  if value and not done[key] and sub(value, 1, 1) == 'C' and sub(value, 24, 47) == ARGV[at] then
    local length = tonumber(sub(value, 48, 49))
    call('SET', key, 'D0000000000000000000000' .. sub(value, 24, 49 + length), 'PX', ARGV[at + 1])
    done[key] = true
    members[#members + 1] = ARGV[at + 2]
    results[i] = 1
  else
    results[i] = 0
  end
end
if base ~= '' and #members > 0 then
  local l, s, gone, rows = base .. ':l', base .. ':s', {}, {}
  for i, held in ipairs(call('ZMSCORE', l, unpack(members))) do
    if held then
      rows[#rows + 1], gone[#gone + 1] = members[i], string.match(members[i], '^[^/]+')
    end
  end
  if #gone > 0 then
    call('ZREM', l, unpack(rows))
    call('XDEL', s, unpack(gone))
  end
end
return results
