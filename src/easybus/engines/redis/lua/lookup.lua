#!lua flags=no-writes,allow-oom
-- The state of one idempotency key: free, claimed (a live lease) or done.  KEYS: the key
local value = redis.call('GET', KEYS[1])
if not value then
  return 'free'
end
local state, time = string.sub(value, 1, 1), redis.call('TIME')
if state == 'D' then
  return 'done'
end
return state == 'C' and tonumber(string.sub(value, 2, 17)) > time[1] * 1000000 + time[2] and 'claimed' or 'free'
