#!lua flags=no-writes,allow-oom
-- All that is declared, with its version.  KEYS: version, queues, topics, prefix of a topic's bindings
-- Returns: {version, {queue, delay, ...}, {topic, {binding, ...}, ...}}
local topics = {}
for _, topic in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  topics[#topics + 1] = topic
  topics[#topics + 1] = redis.call('SMEMBERS', KEYS[4] .. topic)
end
return {redis.call('GET', KEYS[1]) or '', redis.call('HGETALL', KEYS[2]), topics}
