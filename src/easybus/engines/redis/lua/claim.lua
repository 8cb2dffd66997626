#!lua
-- Claims idempotency keys: one owner each, the payload's digest compared first, in every state.
--   value: state F|C|D, lease end (16), starts (6), token (24), length of the digest (2), digest, replay
--   F free, and was claimed before; C claimed; D done, gone by its TTL
-- With a queue's base, the leases of the deliveries begin anew here: none is taken over while its key is still held.
-- KEYS: the keys.  ARGV: base or "", the deliveries' lease, then for each: digest, lease in µs, replay, token, member
-- Returns, for each: -1 conflict, -2 busy, -3 done, else 2 × starts + (1 if it was claimed before)
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local sub, format = string.sub, string.format
local values = redis.call('MGET', unpack(KEYS))
local results, writes, taken, ends, held = {}, {}, {}, {}, {}
for i, key in ipairs(KEYS) do
  local at = 5 * i - 2
  local digest, lease, replay = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local value, starts, before, result = values[i], 0, 0, nil
  if taken[key] then
    result = taken[key] == digest and -2 or -1
  elseif value then
    local state, length = sub(value, 1, 1), tonumber(sub(value, 48, 49))
    if sub(value, 50, 49 + length) ~= digest then
      result = -1
    elseif state == 'D' then
      result = -3
    elseif state == 'C' and tonumber(sub(value, 2, 17)) > now then
      result = -2
    else
      local old = sub(value, 50 + length)
      before = 1
      if replay == '' or replay == old then
        starts, replay = tonumber(sub(value, 18, 23)), old
      end
    end
  end
  if not result then
    starts = math.min(starts + 1, 999999)
    ends[lease] = ends[lease] or format('C%016.0f', now + lease)
    writes[#writes + 1] = key
    writes[#writes + 1] = ends[lease] .. format('%06d', starts) .. ARGV[at + 3] .. format('%02d', #digest) .. digest .. replay
    taken[key] = digest
    result = 2 * starts + before
  end
  results[i] = result
  held[2 * i - 1], held[2 * i] = now + ARGV[2] + i, ARGV[at + 4]
end
if #writes > 0 then
  redis.call('MSET', unpack(writes))
end
if ARGV[1] ~= '' and #held > 0 then
  redis.call('ZADD', ARGV[1] .. ':l', 'XX', unpack(held))
end
return results
