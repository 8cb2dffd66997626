#!lua flags=allow-oom
-- Makes queues (with their messages and bindings), topics and bindings not exist.
-- KEYS: version, queues, topics, prefix of a topic's bindings
-- ARGV: new version, then q, name, prefix of its bindings, base | t, name, "", "" | b, topic, "", binding ...
local version, queues, topics, bindings = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
for at = 2, #ARGV, 4 do
  local what, name = ARGV[at], ARGV[at + 1]
  if what == 'q' then
    redis.call('HDEL', queues, name)
    for _, kind in ipairs({':s', ':z', ':n', ':l', ':c'}) do
      redis.call('UNLINK', ARGV[at + 3] .. kind)
    end
    local prefix = ARGV[at + 2]
    for _, topic in ipairs(redis.call('SMEMBERS', topics)) do
      for _, binding in ipairs(redis.call('SMEMBERS', bindings .. topic)) do
        if string.sub(binding, 1, #prefix) == prefix then
          redis.call('SREM', bindings .. topic, binding)
        end
      end
    end
  elseif what == 't' then
    redis.call('SREM', topics, name)
    redis.call('DEL', bindings .. name)
  else
    redis.call('SREM', bindings .. name, ARGV[at + 3])
  end
end
redis.call('SET', version, ARGV[1])
