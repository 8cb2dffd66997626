#!lua flags=no-writes,allow-oom
-- Letters by key.  KEYS: base.  ARGV: keys.  Returns: {key, fields, history} for each that is there
local base, found = KEYS[1], {}
for _, key in ipairs(ARGV) do
  local fields = redis.call('HGETALL', base .. ':d:' .. key)
  if #fields > 0 then
    found[#found + 1] = {key, fields, redis.call('LRANGE', base .. ':dh:' .. key, 0, -1)}
  end
end
return found
