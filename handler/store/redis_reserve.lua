-- Counts a session among its owner's, unless there are as many as may be.
-- KEYS: the ids of the owner's sessions
-- ARGV: id, how many there may be beside it ('': any number)
-- Returns how many there are beside it.
local ids, id, at_most = KEYS[1], ARGV[1], ARGV[2]
local others = redis.call('ZCARD', ids)
if redis.call('ZSCORE', ids, id) then
    others = others - 1
end
if at_most == '' or others <= tonumber(at_most) then
    redis.call('ZADD', ids, 0, id)
end
return others
