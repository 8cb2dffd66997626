#!lua
-- Takes what is due from one queue: what came back first, then what nobody has had; each under a lease of its own.
--   :z delayed (due → number, body) → :s stream, not delivered → delivered, and one of
--      :l leased (end → id/attempt/owner)   :n returned (due → id/attempt)       both → :l again, one attempt older
-- Each delivered entry has one row in :l or :n; what is settled has neither entry nor row. The group tells how far the
-- stream is delivered, and has no list of what is pending (NOACK), unless a foreign reader makes one: that goes into :n.
-- So does each delivered entry without a row, where there are more of them than rows: a key was lost.
-- KEYS: queues, base.  ARGV: queue, limit, lease in µs, owner
-- Returns: {0} no such queue; {1, µs until something is due or -1}; {2, now in µs, id, attempt, body, ...}
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return {0}
end
local base, limit, lease, owner = KEYS[2], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local s, z, n, l = base .. ':s', base .. ':z', base .. ':n', base .. ':l'
local MOST, FIRST_PART, PART = 4194304, 8, 64  -- bytes of one reply, unless one message has more
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function rows()
  local known = {}
  for _, key in ipairs({l, n}) do
    for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
      known[string.match(member, '^[^/]+')] = true
    end
  end
  return known
end

local upto, unread, foreign = nil, false, 0
local groups = redis.pcall('XINFO', 'GROUPS', s)
if groups.err and not string.find(groups.err, 'no such key') then
  return groups
end
for _, group in ipairs(groups) do
  if group[2] == 'easybus' then
    foreign, upto, unread = group[6], group[8], group[12]  -- it does not always know how many are unread
  end
end
if not upto then
  redis.call('XGROUP', 'CREATE', s, 'easybus', '0', 'MKSTREAM')  -- lost in a failover: all that is there comes again
  redis.call('DEL', n, l)
  upto = '0-0'
elseif foreign > 0 then
  local known = rows()
  for _ = 1, foreign, 1000 do
    local page = redis.call('XPENDING', s, 'easybus', '-', '+', 1000)
    for i, entry in ipairs(page) do
      if not known[entry[1]] then
        redis.call('ZADD', n, now, entry[1] .. '/' .. entry[4])
      end
      page[i] = entry[1]
    end
    redis.call('XACK', s, 'easybus', unpack(page))
  end
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

local found, leases, size, count = {2, now}, {}, 0, 0
local function add(id, attempt, body)
  found[3 * count + 3], found[3 * count + 4], found[3 * count + 5] = id, attempt, body
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
    for _, member in ipairs(members) do
      local id, attempt = string.match(member, '^([^/]+)/(%d+)')
      local entry = redis.call('XRANGE', s, id, id)[1]
      if entry then
        add(id, attempt + 1, entry[2][2])
      end
    end
    redis.call('ZREM', key, unpack(members))
  end
end
again(n)
again(l)
unread = unread and unread + moved
while limit > 0 and size < MOST do
  local part = math.min(limit, size == 0 and FIRST_PART or PART)
  local read = redis.call('XREADGROUP', 'GROUP', 'easybus', 'easybus', 'COUNT', part, 'NOACK', 'STREAMS', s, '>')
  local entries = read and read[1][2] or {}
  for _, entry in ipairs(entries) do
    add(entry[1], 1, entry[2][2])
    upto = entry[1]
  end
  unread = unread and unread - #entries
  if #entries < part then
    unread = 0
    break
  end
end
local lost = unread and redis.call('XLEN', s) - unread - redis.call('ZCARD', l) - redis.call('ZCARD', n) - count
if lost and lost > 0 then
  local known, from, page = rows(), '-', nil
  for at = 2, #leases, 2 do
    known[string.match(leases[at], '^[^/]+')] = true
  end
  repeat
    page = redis.call('XRANGE', s, from, upto, 'COUNT', FIRST_PART)
    for _, entry in ipairs(page) do
      if lost > 0 and not known[entry[1]] then
        redis.call('ZADD', n, now - lost, entry[1] .. '/1')
        lost = lost - 1
      end
      from = '(' .. entry[1]
    end
  until #page == 0 or lost == 0
  again(n)
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
