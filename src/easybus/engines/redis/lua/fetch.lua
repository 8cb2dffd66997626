#!lua
-- Takes what is due from one queue: what came back first, then what nobody has had; each under a lease of its own.
--   :z delayed (due → number, body) → :s stream, not delivered → pending, and one of
--      :l leased (end → id/attempt/owner)   :n returned (due → id/attempt)       both → :l again, one attempt older
-- Every pending entry has one row in :l or :n; one that has none (a failover, a foreign reader) is put into :n.
-- KEYS: queues, base.  ARGV: queue, limit, lease in µs, owner
-- Returns: {0} no such queue; {1, µs until something is due or -1}; {2, id, attempt, body, ...}
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return {0}
end
local base, limit, lease, owner = KEYS[2], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local s, z, n, l = base .. ':s', base .. ':z', base .. ':n', base .. ':l'
local MOST, FIRST_PART, PART = 4194304, 8, 64  -- bytes of one reply, unless one message has more
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local pending = redis.pcall('XPENDING', s, 'easybus')
if pending.err then
  if not string.find(pending.err, 'NOGROUP') then
    return pending
  end
  redis.call('XGROUP', 'CREATE', s, 'easybus', '0', 'MKSTREAM')  -- lost in a failover: all that is there comes again
  redis.call('DEL', n, l)
elseif pending[1] > redis.call('ZCARD', l) + redis.call('ZCARD', n) then
  local known = {}
  for _, key in ipairs({l, n}) do
    for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
      known[string.match(member, '^[^/]+')] = true
    end
  end
  local from, page = '-', nil
  repeat
    page = redis.call('XPENDING', s, 'easybus', from, '+', 1000)
    for _, entry in ipairs(page) do
      if not known[entry[1]] then
        redis.call('ZADD', n, now, entry[1] .. '/' .. entry[4])
      end
      from = '(' .. entry[1]
    end
  until #page < 1000
end

local moved, weight, due = 0, 0, nil
repeat
  due = redis.call('ZRANGEBYSCORE', z, '-inf', now, 'LIMIT', 0, moved == 0 and FIRST_PART or PART)
  for _, member in ipairs(due) do
    redis.call('XADD', s, '*', 'b', string.sub(member, 17))
    weight = weight + #member
  end
  if #due > 0 then
    redis.call('ZREM', z, unpack(due))
  end
  moved = moved + #due
until #due == 0 or moved >= 500 or weight >= MOST

local found, leases, size, count = {2}, {}, 0, 0
local function add(id, attempt, body)
  found[3 * count + 2], found[3 * count + 3], found[3 * count + 4] = id, attempt, body
  leases[2 * count + 1] = now + lease + count  -- taken over in this order
  leases[2 * count + 2] = id .. '/' .. attempt .. '/' .. owner
  size = size + #body
  limit = limit - 1
  count = count + 1
end
local function again(key)
  while limit > 0 and size < MOST do
    local part = size == 0 and FIRST_PART or PART
    local members = redis.call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, math.min(limit, part))
    if #members == 0 then
      return
    end
    local ids, attempts = {}, {}
    for i, member in ipairs(members) do
      local id, attempt = string.match(member, '^([^/]+)/(%d+)')
      ids[i], attempts[id] = id, tonumber(attempt)
    end
    redis.call('ZREM', key, unpack(members))
    for _, entry in ipairs(redis.call('XCLAIM', s, 'easybus', 'easybus', 0, unpack(ids))) do
      if entry then
        add(entry[1], attempts[entry[1]] + 1, entry[2][2])
      end
    end
  end
end
again(n)
again(l)
while limit > 0 and size < MOST do
  local part = math.min(limit, size == 0 and FIRST_PART or PART)
  local read = redis.call('XREADGROUP', 'GROUP', 'easybus', 'easybus', 'COUNT', part, 'STREAMS', s, '>')
  if not read then
    break
  end
  for _, entry in ipairs(read[1][2]) do
    add(entry[1], 1, entry[2][2])
  end
  if #read[1][2] < part then
    break
  end
end
for first = 1, #leases, 1000 do
  redis.call('ZADD', l, unpack(leases, first, math.min(first + 999, #leases)))
end
if #leases > 0 then
  return found
end

local next_due = -1
for _, key in ipairs({z, n, l}) do
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  if first[2] then
    local left = math.max(0, first[2] - now)
    if next_due < 0 or left < next_due then
      next_due = left
    end
  end
end
return {1, next_due}
