#!lua flags=allow-oom
-- A node is about to be emptied, if one of the others that take mail is not being emptied itself. Who is, is one life of a process: the next
-- begins anew.
-- KEYS nodes, drains    ARGV node, incarnation, others that take mail...
-- 1 | 0: nobody is left
if redis.call('TYPE', KEYS[2]).ok ~= 'hash' then redis.call('DEL', KEYS[2]) end
local function incarnation(node)
  return string.match(redis.call('HGET', KEYS[1], node) or '', '^([^\n]*)\n')
end
local drains = redis.call('HGETALL', KEYS[2])
for at = 1, #drains, 2 do
  if incarnation(drains[at]) ~= drains[at + 1] then redis.call('HDEL', KEYS[2], drains[at]) end
end
for at = 3, #ARGV do
  if redis.call('HEXISTS', KEYS[2], ARGV[at]) == 0 then
    redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
    return 1
  end
end
return 0
