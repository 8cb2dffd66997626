#!lua
-- Claims idempotency keys: one owner each, the payload's digest compared first, in every state.
--   value: state F|C|D, lease end (16), starts (6), token (24), length of the digest (2), digest, replay
--   F free, and was claimed before; C claimed; D done, gone by its TTL
-- KEYS: the keys.  ARGV: for each: digest, lease in µs, replay, token
-- Returns, for each: -1 conflict, -2 busy, -3 done, else 2 × starts + (1 if it was claimed before)
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local YEAR = 34560000000  -- 400 days in ms: a claim whose message is gone does not stay for ever
local results = {}
for i, key in ipairs(KEYS) do
  local at = 4 * i - 3
  local digest, replay = ARGV[at], ARGV[at + 2]
  local value = redis.call('GET', key)
  local starts, before = 0, 0
  local result
  if value then
    local state, length = string.sub(value, 1, 1), tonumber(string.sub(value, 48, 49))
    if string.sub(value, 50, 49 + length) ~= digest then
      result = -1
    elseif state == 'D' then
      result = -3
    elseif state == 'C' and tonumber(string.sub(value, 2, 17)) > now then
      result = -2
    else
      local old = string.sub(value, 50 + length)
      before = 1
      if replay == '' or replay == old then
        starts, replay = tonumber(string.sub(value, 18, 23)), old
      end
    end
  end
  if not result then
    starts = math.min(starts + 1, 999999)
    redis.call('SET', key, string.format('C%016.0f%06d', now + ARGV[at + 1], starts) .. ARGV[at + 3]
      .. string.format('%02d', #digest) .. digest .. replay, 'PX', YEAR)
    result = 2 * starts + before
  end
  results[i] = result
end
return results
