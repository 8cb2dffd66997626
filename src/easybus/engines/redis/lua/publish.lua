#!lua
-- Adds messages to queues, in the order given, if the topology is still the one that the caller routed by.
-- KEYS: version, then one base for each queue.  ARGV: version, then groups of messages for the same queues:
--   number of queues, (index into the bases, delay in µs) for each, number of messages, their bodies
-- Returns: {1, current version} if stale; else {0, error, ...}, one for each group, "" where there is none.
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then
  return {1}
end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local results, touched, at, last = {0}, {}, 2, #ARGV
local try = redis.pcall
while at <= last do
  local queues, targets = tonumber(ARGV[at]), at
  at = at + 1 + 2 * queues
  local count, failed = tonumber(ARGV[at]), ''
  for q = 1, queues do
    local base, delay = KEYS[1 + ARGV[targets + 2 * q - 1]], tonumber(ARGV[targets + 2 * q])
    local s, z, c = base .. ':s', base .. ':z', base .. ':c'
    touched[base] = true
    for m = at + 1, at + count do
      local reply
      if delay == 0 then
        reply = try('XADD', s, '*', 'b', ARGV[m])
      else
        reply = try('INCR', c)
        if type(reply) ~= 'table' then
          reply = try('ZADD', z, now + delay, string.format('%016.0f', reply) .. ARGV[m])
        end
      end
      if type(reply) == 'table' and reply.err then
        failed = reply.err
        break
      end
    end
  end
  results[#results + 1] = failed
  at = at + count + 1
end
for base in pairs(touched) do
  redis.pcall('PUBLISH', base .. ':w', '')  -- a user without rights on channels polls
end
return results
