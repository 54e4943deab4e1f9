-- One page of the nodes. KEYS members, nodes    ARGV offset, count (at most 256)
-- {now_ms, node, last_seen_ms, record, ...}
local t = redis.call('TIME')
local offset, count = tonumber(ARGV[1]), math.min(tonumber(ARGV[2]), 256)
local seen = redis.call('ZRANGE', KEYS[1], offset, offset + count - 1, 'WITHSCORES')
local answer = {tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)}
for i = 1, #seen, 2 do
  answer[#answer + 1] = seen[i]
  answer[#answer + 1] = tonumber(seen[i + 1])
  answer[#answer + 1] = redis.call('HGET', KEYS[2], seen[i]) or ''
end
return answer
