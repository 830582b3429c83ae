-- Applies one session's mutations, all or none, if its server still holds the lease.
-- KEYS: head, marks, bodies, infos, states, lease
-- ARGV: token, sequence, whether it needs room ('1' or ''), then the mutations, each as its kind, the incarnation and
--       as many arguments as `takes` says
-- Returns one string for each mutation: empty if it was applied, else why not. Or 'lease' or 'late' alone.
local head, marks, bodies, infos, states, lease = unpack(KEYS)

local held = redis.call('HMGET', lease, 'token', 'sequence')
if held[1] ~= ARGV[1] then
    return {'lease'}
end
-- A commit that its server gave up waiting for must not arrive after a later one and undo it.
if tonumber(ARGV[2]) < tonumber(held[2] or '0') then
    return {'late'}
end
if ARGV[3] == '1' then
    -- The first write of all, so that a server without memory refuses here and the rest happens as a whole.
    redis.call('HSET', lease, 'sequence', ARGV[2])
end

local facts = redis.call('HMGET', head, 'incarnation', 'ordinal', 'ended', 'bytes')
local incarnation, ended = facts[1], facts[3]
local ordinal, bytes = tonumber(facts[2] or '0'), tonumber(facts[4] or '0')
local count = redis.call('LLEN', marks)

local function whole(number)
    return string.format('%.0f', number)
end

local function stands(wanted)
    if not incarnation then
        return 'the session is unknown'
    elseif incarnation ~= wanted then
        return 'the session is incarnation ' .. incarnation
    elseif ended ~= '' then
        return 'the session was ' .. ended
    end
end

local function size_of(mark)
    return tonumber(string.match(mark, '%S+$'))
end

local function drop_records(from, to) -- places in the list, from 0
    for _, mark in ipairs(redis.call('LRANGE', marks, from, to)) do
        bytes = bytes - size_of(mark)
    end
    for _, list in ipairs({marks, bodies}) do
        if from > 0 then
            redis.call('LTRIM', list, 0, from - 1)
        else
            redis.call('LTRIM', list, to + 1, -1)
        end
    end
    count = redis.call('LLEN', marks)
end

local function drop_snapshots(from, to)
    local all = redis.call('HGETALL', infos)
    for place = 1, #all, 2 do
        local at = tonumber(all[place])
        if at >= from and at <= to then
            bytes = bytes - size_of(all[place + 1])
            redis.call('HDEL', infos, all[place])
            redis.call('HDEL', states, all[place])
        end
    end
end

local function keep(at_ordinal, info, state)
    drop_snapshots(tonumber(at_ordinal), tonumber(at_ordinal))
    redis.call('HSET', infos, at_ordinal, info .. ' ' .. #state)
    redis.call('HSET', states, at_ordinal, state)
    bytes = bytes + #state
end

local takes = {begin = 12, append = 6, keep = 4, ['end'] = 2, prune = 1}
local apply = {}

function apply.begin(own, digest, owner, created_at, last_used_at, position, experience, at_ordinal, why, ended_at,
        snapshot_ordinal, info, state)
    redis.call('DEL', head, marks, bodies, infos, states)
    redis.call('HSET', head, 'incarnation', own, 'digest', digest, 'owner', owner, 'created_at', created_at,
        'last_used_at', last_used_at, 'position', position, 'experience', experience, 'ordinal', at_ordinal,
        'ended', why, 'ended_at', ended_at)
    incarnation, ordinal, ended, bytes, count = own, tonumber(at_ordinal), why, 0, 0
    if snapshot_ordinal ~= '' then
        keep(snapshot_ordinal, info, state)
    end
    return ''
end

function apply.append(own, at_ordinal, position, experience, at, digest, body)
    local reason = stands(own)
    if reason then
        return reason
    end
    local wanted, pruned = tonumber(at_ordinal), ordinal - count
    if wanted <= pruned or wanted > ordinal + 1 then
        return 'record ' .. at_ordinal .. " can't follow record " .. whole(ordinal)
    end
    if wanted <= ordinal then
        drop_records(wanted - pruned - 1, count - 1)
        drop_snapshots(wanted, math.huge)
    end
    redis.call('RPUSH', marks, table.concat({at_ordinal, position, experience, at, #body}, ' '))
    redis.call('RPUSH', bodies, body)
    redis.call('HSET', head, 'ordinal', at_ordinal, 'position', position, 'experience', experience,
        'last_used_at', at)
    if digest ~= '' then
        redis.call('HSET', head, 'digest', digest)
    end
    ordinal, count, bytes = wanted, count + 1, bytes + #body
    return ''
end

function apply.keep(own, at_ordinal, info, state, instead_of)
    local reason = stands(own)
    if reason then
        return reason
    end
    if tonumber(at_ordinal) > ordinal then -- a failover has lost records that its server knows of
        return 'snapshot ' .. at_ordinal .. " can't follow record " .. whole(ordinal)
    end
    for former in string.gmatch(instead_of, '%d+') do
        drop_snapshots(tonumber(former), tonumber(former))
    end
    keep(at_ordinal, info, state)
    return ''
end

apply['end'] = function(own, why, at)
    if incarnation == own and ended ~= '' then
        return ''
    end
    local reason = stands(own)
    if reason then
        return reason
    end
    redis.call('DEL', marks, bodies, infos, states)
    redis.call('HSET', head, 'ended', why, 'ended_at', at)
    ended, count, bytes = why, 0, 0
    return ''
end

function apply.prune(own, up_to)
    if incarnation ~= own then
        return stands(own)
    end
    drop_snapshots(-1, tonumber(up_to) - 1)
    local leaving = math.min(tonumber(up_to), ordinal) - (ordinal - count)
    if leaving > 0 then
        drop_records(0, leaving - 1)
    end
    return ''
end

local outcomes = {}
local place = 4
while place <= #ARGV do
    local kind = ARGV[place]
    local last = place + 1 + takes[kind]
    outcomes[#outcomes + 1] = apply[kind](unpack(ARGV, place + 1, last))
    place = last + 1
end
if incarnation then
    redis.call('HSET', head, 'bytes', whole(bytes))
end
return outcomes
