-- One page of the nodes, those that were seen longest ago first, behind the last of the page before. That one's place then says nothing: each node that is
-- seen between two calls goes to the end, and all that come after it move up.
-- KEYS members, nodes    ARGV node, last_seen_ms: the last one ('' and 0: there was none), count (at most 256)
-- {now_ms, node, last_seen_ms, record, ...}
local t = redis.call('TIME')
local begin, count = 0, math.min(tonumber(ARGV[3]), 256)
if ARGV[1] ~= '' then
  if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or '') == tonumber(ARGV[2]) then
    -- All before it were before it then.
    begin = redis.call('ZRANK', KEYS[1], ARGV[1]) + 1
  else
    -- It was seen itself: those that were seen together with it come once more.
    begin = redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. ARGV[2])
  end
end
local seen = redis.call('ZRANGE', KEYS[1], begin, begin + count - 1, 'WITHSCORES')
local answer = {tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)}
for i = 1, #seen, 2 do
  answer[#answer + 1] = seen[i]
  answer[#answer + 1] = tonumber(seen[i + 1])
  answer[#answer + 1] = redis.call('HGET', KEYS[2], seen[i]) or ''
end
return answer
