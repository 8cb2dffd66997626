#!lua flags=no-writes,allow-oom
-- Halves by id.  KEYS: prefix of a half.  ARGV: ids.  Returns: {id, fields} for each that is there
local found = {}
for _, id in ipairs(ARGV) do
  local fields = redis.call('HGETALL', KEYS[1] .. id)
  if #fields > 0 then
    found[#found + 1] = {id, fields}
  end
end
return found
