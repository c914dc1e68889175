-- Leases for one edge: buckets (GCRA by Redis' own clock) and days. See fleet.rs for the argument.
--
-- KEYS  1 life: hash of run, epoch, factor, changed, before    2 edges: sorted set of id by last seen
--       3… one for each row
-- ARGV  1 run id of this Redis  2 id of the edge  3 how many edges  4 seconds until one is missed
--       5 "1": it leaves
--       then four for each row:  r, units a second, most saved up, wanted (below 0: given back)
--                                d, units a day, used and kept by the edge, wanted beyond
-- Returns edges seen, edges missed, then one number for each row: granted, or of a day all that the
-- edge may use.

local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local run, me, edges, missed_after = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local GRACE = 10      -- seconds of a new life in which edges that are not seen may be alone
local GONE = 3600     -- seconds after which an edge that is not seen is no more

local life = redis.call('HMGET', KEYS[1], 'run', 'epoch', 'factor', 'changed', 'before')
local epoch, factor, changed, before =
  tonumber(life[2]), tonumber(life[3]), tonumber(life[4]), tonumber(life[5])
if life[1] ~= run or not (epoch and factor and changed and before) then
  -- Another Redis, or one that lost what it knew: every bucket is empty now.
  epoch, factor, changed, before = now, 1 / edges, now, 0
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'run', run, 'epoch', string.format('%.6f', epoch), 'factor',
    string.format('%.17g', factor), 'changed', string.format('%.6f', changed), 'before', '0')
end

if ARGV[5] == '1' then
  redis.call('ZREM', KEYS[2], me)
else
  redis.call('ZADD', KEYS[2], string.format('%.6f', now), me)
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - GONE)
local known = redis.call('ZCARD', KEYS[2])
local missed = redis.call('ZCOUNT', KEYS[2], '-inf', now - missed_after)
local away = missed
if now - epoch < GRACE then away = math.max(missed, edges - (known - missed)) end
local share = math.max(1 / edges, 1 - away / edges)
if share ~= factor then
  -- What passed before is counted by the smaller of both: nobody knows when an edge went alone.
  before = math.min(share, factor)
  factor, changed = share, now
  redis.call('HSET', KEYS[1], 'factor', string.format('%.17g', factor), 'changed',
    string.format('%.6f', changed), 'before', string.format('%.17g', before))
end

local function earned(from, rate)
  local early = math.max(0, math.min(changed, now) - from)
  local late = math.max(0, now - math.max(from, changed))
  return rate * (early * before + late * factor)
end

local answer = { known - missed, missed }
for row = 3, #KEYS do
  local at = 6 + (row - 3) * 4
  local kind, a, b, c = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  if kind == 'r' then
    local bucket = redis.call('HMGET', KEYS[row], 'owed', 'at')
    local owed, from = tonumber(bucket[1]), tonumber(bucket[2])
    if not (owed and from) then
      owed, from = b, epoch
    elseif from < epoch then
      owed, from = math.max(owed, b), epoch
    end
    owed = math.max(0, owed - earned(from, a))
    local granted
    if c < 0 then
      granted = c
      owed = math.max(0, owed + c)
    else
      granted = math.max(0, math.min(c, math.floor(b - owed)))
      owed = owed + granted
    end
    redis.call('HSET', KEYS[row], 'owed', string.format('%.17g', owed), 'at', string.format('%.6f', now))
    -- Once it is full it says no more than its absence does.
    redis.call('PEXPIRE', KEYS[row], math.ceil((owed / a * edges + 60) * 1000))
    answer[#answer + 1] = string.format('%.0f', granted)
  else
    local others, told = 0, 1
    local all = redis.call('HGETALL', KEYS[row])
    for field = 1, #all, 2 do
      if all[field] ~= me then others, told = others + tonumber(all[field + 1]), told + 1 end
    end
    local mine = b
    -- In a new life nothing beyond until every edge has told what it used, or had the time to.
    if now - epoch >= GRACE or told >= edges then
      local left = math.max(0, a - others - b)
      mine = b + math.min(left, math.max(math.ceil(left / (2 * edges)), c))
    end
    redis.call('HSET', KEYS[row], me, string.format('%.0f', mine))
    redis.call('EXPIRE', KEYS[row], 172800)
    answer[#answer + 1] = string.format('%.0f', mine)
  end
end
return answer
