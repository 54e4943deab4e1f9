-- Items that are in no place any more, as keys were lost, are put back, whoever owns them: an owner that is gone does not ask for them. What nobody can
-- read leaves the queue. A leader's chore, a part at a time, fenced by its epoch.
-- KEYS of the queue    ARGV epoch, cursor ('0': the beginning)
-- {1, next cursor ('0': the end), number put back} | {0, epoch}
check_keys()
local META, EPOCH = KEYS[8], KEYS[14]
local mine, seen = tonumber(ARGV[1]), tonumber(redis.call('GET', EPOCH) or '0') or 0
-- What is no epoch is damage, as good as lost: what nodes have accepted raises it again (L6).
if not (seen >= 0 and seen <= 9007199254740991) then seen = 0 end
if not mine or mine < seen then return {0, seen} end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
local found = redis.call('HSCAN', META, ARGV[2], 'COUNT', 64)
redis.call('SET', EPOCH, string.format('%.0f', mine))
local restored = 0
for i = 1, #found[2], 2 do
  local id = found[2][i]
  local meta = meta_of(id)
  if meta == false then
    drop(id)
  elseif meta and put_back(id, meta, now) then
    restored = restored + 1
  end
end
return {1, found[1], restored}
