-- Gives the lease of exactly this leadership back (L3), and says so to who listens.
-- KEYS leader    ARGV leadership, channel ('': nobody was told of it)
-- 1 | 0
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
  if ARGV[2] ~= '' then redis.call('PUBLISH', ARGV[2], 'released') end
  return 1
end
return 0
