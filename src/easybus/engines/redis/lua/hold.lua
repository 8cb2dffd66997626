#!lua flags=allow-oom
-- Renews or releases claims, each only under its token.
-- KEYS: the keys.  ARGV: lease in µs, or -1 to release; then one token for each key
-- Returns 1 or 0 for each.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local lease, DAY, results = tonumber(ARGV[1]), 86400000, {}
for i, key in ipairs(KEYS) do
  local value = redis.call('GET', key)
  if value and string.sub(value, 1, 1) == 'C' and string.sub(value, 24, 47) == ARGV[i + 1] then
    if lease < 0 then
      redis.call('SET', key, 'F' .. string.rep('0', 22) .. string.sub(value, 24), 'PX', DAY)
    else
      redis.call('SET', key, string.format('C%016.0f', now + lease) .. string.sub(value, 18), 'KEEPTTL')
    end
    results[i] = 1
  else
    results[i] = 0
  end
end
return results
