-- Gives the lease of exactly this leadership back (L3), and says so to who listens.
-- KEYS leader    ARGV leadership, channel ('': nobody was told of it)
-- {1, announced (-1: nobody is told)} | {0, -1}
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
  return {1, ARGV[2] ~= '' and announce(ARGV[2], 'released') or -1}
end
return {0, -1}
