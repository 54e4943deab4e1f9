#!lua flags=allow-oom
-- Renews the lease of exactly this leadership, unless a higher epoch was seen; never makes an absent one (L3).
-- KEYS leader, epoch    ARGV leadership, epoch, ttl_ms
-- {1} | {0, epoch}
local seen = tonumber(redis.call('GET', KEYS[2]) or '0') or 0
-- What is no epoch is damage, as good as lost: what nodes have accepted raises it again (L6).
if not (seen >= 0 and seen <= 9007199254740991) then seen = 0 end
if redis.call('GET', KEYS[1]) == ARGV[1] and tonumber(ARGV[2]) >= seen then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return {1}
end
return {0, seen}
