#!lua flags=no-writes,allow-oom
-- The keys that a name addresses: a letter's own, or those of the letters of one message id.
-- KEYS: base.  ARGV: names.  Returns: a key or "" for each
local base, found = KEYS[1], {}
for i, name in ipairs(ARGV) do
  found[i] = ''
  if redis.call('EXISTS', base .. ':d:' .. name) == 1 then
    found[i] = name
  elseif name ~= '' then
    local prefix, named = name .. ':', 0
    for _, key in ipairs(redis.call('ZRANGE', base .. ':dt', 0, -1)) do
      if #key == #prefix + 64 and string.sub(key, 1, #prefix) == prefix then
        found[i], named = key, named + 1
      end
    end
    if named ~= 1 then
      found[i] = ''
    end
  end
end
return found
