#!lua flags=allow-oom
-- A leader's word for all nodes (the plan, the roll-out's account). Fenced; the same word twice changes nothing.
-- KEYS epoch, target    ARGV epoch, text
-- {1} | {0, epoch}
local mine, seen = tonumber(ARGV[1]), tonumber(redis.call('GET', KEYS[1]) or '0') or 0
-- What is no epoch is damage, as good as lost: what nodes have accepted raises it again (L6).
if not (seen >= 0 and seen <= 9007199254740991) then seen = 0 end
if not mine or mine < seen then return {0, seen} end
redis.call('SET', KEYS[1], string.format('%.0f', mine))
redis.call('SET', KEYS[2], ARGV[2])
return {1}
