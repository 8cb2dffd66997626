#!lua
-- Makes queues, topics and bindings exist, all or none; a change gives the topology a version that it never had.
-- KEYS: version, queues, topics, prefix of a topic's bindings
-- ARGV: new version, then q, name, delay, base | t, name, "", "" | b, topic, queue, binding ...     in this order
-- Returns: {"ok"}, {"delay", queue, its delay}, {"no topic", name} or {"no queue", name}
local version, queues, topics, bindings = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local new = {}
for at = 2, #ARGV, 4 do
  local what, name = ARGV[at], ARGV[at + 1]
  if what == 'q' then
    local delay = redis.call('HGET', queues, name) or new['q' .. name]
    if delay and delay ~= ARGV[at + 2] then
      return {'delay', name, delay}
    end
    new['q' .. name] = ARGV[at + 2]
  elseif what == 't' then
    new['t' .. name] = true
  elseif not new['t' .. name] and redis.call('SISMEMBER', topics, name) == 0 then
    return {'no topic', name}
  elseif not new['q' .. ARGV[at + 2]] and redis.call('HEXISTS', queues, ARGV[at + 2]) == 0 then
    return {'no queue', ARGV[at + 2]}
  end
end
local changed = redis.call('EXISTS', version) == 0 and 1 or 0
for at = 2, #ARGV, 4 do
  if ARGV[at] == 'q' then
    local made = redis.pcall('XGROUP', 'CREATE', ARGV[at + 3] .. ':s', 'easybus', '0', 'MKSTREAM')
    if made.err and not string.find(made.err, 'BUSYGROUP') then
      return made
    end
  end
end
for at = 2, #ARGV, 4 do
  local what, name = ARGV[at], ARGV[at + 1]
  if what == 'q' then
    changed = changed + redis.call('HSETNX', queues, name, ARGV[at + 2])
  elseif what == 't' then
    changed = changed + redis.call('SADD', topics, name)
  else
    changed = changed + redis.call('SADD', bindings .. name, ARGV[at + 3])
  end
end
if changed > 0 then
  redis.call('SET', version, ARGV[1])
end
return {'ok'}
