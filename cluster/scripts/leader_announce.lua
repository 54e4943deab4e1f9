-- Says to who listens that exactly this leadership was elected, as long as it has the lease.
-- KEYS leader    ARGV leadership, channel
-- {1, announced} | {0, -1}
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {0, -1} end
return {1, announce(ARGV[2], 'elected ' .. ARGV[1])}
