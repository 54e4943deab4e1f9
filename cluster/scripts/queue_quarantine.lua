-- Puts keys aside that are of another type than they have to be: no script goes on where one is, and what it holds nobody can use. What stood there is
-- found anew: places by what each item says of itself (`queue_restore`), items and outcomes by their owners, which hear that data was lost.
-- KEYS of the queue, and for each the key that it is put aside as, in the place of an earlier one    ARGV random
-- {key, type, ...} the key by its number, from 1
local TYPES = {'zset', 'zset', 'zset', 'zset', 'zset', 'zset', 'zset', 'hash', 'hash', 'hash', 'zset', 'hash', 'string', 'string', 'hash', 'zset', 'string'}
local answer, is_lost = {}, false
for i, sound in ipairs(TYPES) do
  local found = redis.call('TYPE', KEYS[i]).ok
  if found ~= 'none' and found ~= sound then
    -- Where this user may not do that, nothing is changed, as before.
    local moved = redis.pcall('RENAME', KEYS[i], KEYS[i + #TYPES])
    if not moved.err then
      answer[#answer + 1] = i
      answer[#answer + 1] = found
      -- Items, contents, or who has ended them.
      is_lost = is_lost or i == 8 or i == 9 or i == 12 or i == 13 or i == 15
    end
  end
end
if is_lost then redis.call('SET', KEYS[13], ARGV[1]) end
if #answer > 0 then tally('quarantined', #answer / 2) end
return answer
