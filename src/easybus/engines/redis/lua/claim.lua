#!lua
-- Claims idempotency keys: one owner each, the payload's digest compared first, in every state.
--   value: state F|C|D, lease end (16), starts (6), token (24), length of the digest (2), digest, replay
--   F free, and was claimed before; C claimed; D done, gone by its TTL
-- The leases begin when the deliveries' began, where that is given: none is taken over while its key is still held.
-- KEYS: the keys.  ARGV: begin of the leases in µs or "" for now, then for each: lease in µs, what its value ends with
-- Returns, for each: -1 conflict, -2 busy, -3 done, else 2 × starts + (1 if it was claimed before)
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local begin, sub, format = tonumber(ARGV[1]) or now, string.sub, string.format
local function digest_of(text, at)
  return sub(text, at, at + 1 + sub(text, at, at + 1))
end
local values = redis.call('MGET', unpack(KEYS))
local results, writes, taken, ends = {}, {}, {}, {}
for i, key in ipairs(KEYS) do
  local lease, fresh = ARGV[2 * i], ARGV[2 * i + 1]
  local value, starts, before, result = values[i], 0, 0, nil
  if taken[key] then
    result = digest_of(taken[key], 25) == digest_of(fresh, 25) and -2 or -1
  elseif value then
    local state, digest = sub(value, 1, 1), digest_of(value, 48)
    if digest ~= digest_of(fresh, 25) then
      result = -1
    elseif state == 'D' then
      result = -3
    elseif state == 'C' and tonumber(sub(value, 2, 17)) > now then
      result = -2
    else
      local replay, old = sub(fresh, 25 + #digest), sub(value, 48 + #digest)
      before = 1
      if replay == '' then
        fresh = fresh .. old
      end
      if replay == '' or replay == old then
        starts = tonumber(sub(value, 18, 23))
      end
    end
  end
  if not result then
    starts = math.min(starts + 1, 999999)
    ends[lease] = ends[lease] or format('C%016.0f', begin + lease)
    writes[#writes + 1] = key
    writes[#writes + 1] = ends[lease] .. format('%06d', starts) .. fresh
    taken[key] = fresh
    result = 2 * starts + before
  end
  results[i] = result
end
if #writes > 0 then
  redis.call('MSET', unpack(writes))
end
return results
