-- Makes a lease run on from now, or end now: also one that has run out, if nobody has taken the session over since.
-- KEYS: lease
-- ARGV: token, milliseconds of the lease (0: it is given up), milliseconds to remember it for
-- Returns 1, or 0 if another server has the session.
local lease = KEYS[1]
if redis.call('HGET', lease, 'token') ~= ARGV[1] then
    return 0
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', lease, 'until_ms', string.format('%.0f', now_ms + ARGV[2]))
redis.call('PEXPIRE', lease, ARGV[3])
return 1
