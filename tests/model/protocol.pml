/* The protocol of a transaction, for SPIN.  `python -m tests.model` checks it; docs/explanation/proof.md says what it means.
 *
 * A transaction T1 of STEPS steps in two folders, of any mixture of kinds, stages, journals, swaps, marks and cleans up, or
 * fails and rolls back.  At any moment: the process is killed, the power is cut (CRASHES times in all, also during a
 * recovery), a stranger puts an object of their own at one destination, another transaction T2 changes a destination.
 * Whoever reads does so at every moment at which the locks let them.
 *
 * The disk is the strictest that is allowed: what was not synced is there in any combination, but that changes of one entry
 * come in order and that a rename is whole; one to another folder may leave both names when only the new one's folder was
 * synced.  What is deleted is gone at once, whether its name is or not.
 *
 * Each rule can be taken out by its number (tests/model/rules.py says what each is); then SPIN must find a violation.
 */

#ifndef STEPS
#define STEPS 2
#endif

/* The rule that is taken out: RULE in the environment.  CRASHES: how many at most.  ANYWHERE: each step
 * may be in each folder; else they take turns.  NOBODY: no stranger, no other transaction, no reader that takes its time.
 * KINDS: the kinds of the first steps, as digits; any, where there is none: one part of all transactions. */
c_decl { int rule, most, anywhere, nobody; int kinds[STEPS]; }
#define MAY_BE(kind) c_expr { kinds[now.i] == 0 || kinds[now.i] == kind }
#define KEPT(n) c_expr { rule != n }
#define OUT(n) c_expr { rule == n }
#define NO_B1_CONTENT 1
#define NO_B1_JOURNAL 2
#define NO_B1_PARENTS 3
#define JOURNAL_IN_ONE 4
#define NO_B2 5
#define B2_AFTER_B3 6
#define NO_B3 7
#define DISPLACED_EARLY 8
#define STAGED_EARLY 9
#define NO_UNDO_SYNC 10
#define NO_UNDONE 11
#define NO_UNDONE_SYNC 12
#define NO_RECOVERY_SYNC 13
#define NO_RECOVERY_RECORD 14
#define TRUST_OUTCOME 15
#define UNDO_FORWARD 16
#define NO_IDENTITY 17
#define NO_CHECK 18
#define NO_RETURN 19
#define NO_STRANDED 20
#define NO_LOCK 21
#define NO_HOT 22
#define NO_NEVER_PREPARED 23
#define CREATE_RETURNS 24
#define NO_B1_SLOTS 25
#define NAMES (2 * STEPS)
#define QUEUE (4 * STEPS + 2)

#define NONE 0
#define NEW(i) (1 + (i))
#define OLD(i) (1 + STEPS + (i))
#define OTHERS 30  /* another transaction's object */
#define STRANGE 31
#define NOWHERE 255

#define CREATE 1
#define REPLACE 2
#define REMOVE 3
#define EXCHANGE 4

/* --- what is to be done.  Name i is the destination of step i, name STEPS + i a slot, or of an exchange the other name. */
byte op[STEPS], slot[STEPS], new[STEPS], old[STEPS];
byte folder_of[NAMES];                 /* 0, 1: where destinations are; 2, 3: their private folders */
bool public[NAMES], parent[2];
byte was[NAMES], wanted[NAMES];

/* --- memory and disk */
byte name[NAMES], disk[NAMES];
byte qa[QUEUE], qva[QUEUE], qb[QUEUE], qvb[QUEUE], qn;  /* changes that were not synced, in order: name a becomes va, and b vb */
bool qren[QUEUE];                      /* a rename from a to b */
byte need[QUEUE];                      /* of a sync: 1 all of the change lasts, 2 the new name does */
bool lost[32];                         /* objects that are deleted, or whose content was lost */
bool content[STEPS];                   /* the content of what was staged lasts */
byte intent, intent_disk;              /* the journal's: 0 not there (or torn), 1 whole */
bool jname[2], jname_disk[2];
byte mark, mark_disk;                  /* 1 committed, 2 undone */

/* --- what is going on */
bool reading, read_old, read_new;
bool locked, told_new, told_old, stranger_came, other_came, over_old[STEPS];
byte crashes, expected[NAMES];         /* what others put at a name */
byte i, j, k, f, x;
bool failed, prepared, committed, trusted;

#define bit(n) (1 << (n))

/* Whether there may still be a crash.  Behind the last one nobody asks any more what lasts, so nothing is kept of it. */
#define MORE c_expr { now.crashes < most }

/* --- changes and syncs --------------------------------------------------------------------------------------------- */
inline change(a, va, b, vb, rename)
{
    qa[qn] = a; qva[qn] = va; qb[qn] = b; qvb[qn] = vb; qren[qn] = rename;  /* the values first, for they may be names */
    name[qa[qn]] = qva[qn];
    if
    :: qb[qn] != NOWHERE -> name[qb[qn]] = qvb[qn]
    :: else
    fi;
    if
    :: MORE -> qn++
    :: else -> qa[qn] = 0; qva[qn] = 0; qb[qn] = 0; qvb[qn] = 0; qren[qn] = false
    fi
}

short m;
int later;
byte keep;
inline sync_folder(F)
{   /* what changed in folder F, and what that builds on, lasts */
    if
    :: MORE ->
        m = qn - 1; later = 0;
        do
        :: m < 0 -> break
        :: else ->
            need[m] = (folder_of[qa[m]] == F || (later & bit(qa[m])));
            if
            :: qb[m] != NOWHERE -> need[m] = (need[m] || folder_of[qb[m]] == F || (later & bit(qb[m])))
            :: else
            fi;
            if
            :: need[m] && qren[m] && folder_of[qb[m]] == F && folder_of[qa[m]] != F && !(later & bit(qa[m])) ->
                need[m] = 2;  /* the new name lasts, that the old one is gone need not */
                later = later | bit(qb[m])
            :: else ->
                if
                :: need[m] ->
                    later = later | bit(qa[m]);
                    if
                    :: qb[m] != NOWHERE -> later = later | bit(qb[m])
                    :: else
                    fi
                :: else
                fi
            fi;
            m--
        od;
        m = 0; keep = 0;
        do
        :: m == qn -> break
        :: else ->
            if
            :: need[m] == 2 ->
                disk[qb[m]] = qvb[m];
                qa[keep] = qa[m]; qva[keep] = qva[m]; qb[keep] = NOWHERE; qvb[keep] = 0; qren[keep] = false;
                keep++
            :: need[m] == 1 ->
                disk[qa[m]] = qva[m];
                if
                :: qb[m] != NOWHERE -> disk[qb[m]] = qvb[m]
                :: else
                fi
            :: else ->
                if
                :: !need[m] ->
                    qa[keep] = qa[m]; qva[keep] = qva[m]; qb[keep] = qb[m]; qvb[keep] = qvb[m]; qren[keep] = qren[m];
                    keep++
                :: else
                fi
            fi;
            m++
        od;
        m = keep;
        do
        :: m >= qn -> break
        :: else -> qa[m] = 0; qva[m] = 0; qb[m] = 0; qvb[m] = 0; qren[m] = false; m++
        od;
        m = 0;
        do
        :: m == QUEUE -> break
        :: else -> need[m] = 0; m++
        od;
        qn = keep; keep = 0; m = 0; later = 0
    :: else
    fi
}

inline sync_names(F)
{   /* a folder, with the journal's name in it if it is a parent */
    sync_folder(F);
    if
    :: F < 2 -> jname_disk[F] = jname[F]
    :: else
    fi
}

int absent;
inline power_cut()
{   /* of what was not synced, any part */
    m = 0; absent = 0;
    do
    :: m == qn -> break
    :: else ->
        x = ((absent & bit(qa[m])) || (qb[m] != NOWHERE && (absent & bit(qb[m]))));
        if
        :: !x ->
            disk[qa[m]] = qva[m];
            if
            :: qb[m] != NOWHERE -> disk[qb[m]] = qvb[m]
            :: else
            fi
        :: true ->
            absent = absent | bit(qa[m]);
            if
            :: qb[m] != NOWHERE -> absent = absent | bit(qb[m])
            :: else
            fi
        fi;
        m++
    od;
    m = 0;
    do
    :: m == QUEUE -> break
    :: else -> qa[m] = 0; qva[m] = 0; qb[m] = 0; qvb[m] = 0; qren[m] = false; m++
    od;
    qn = 0; m = 0; absent = 0; x = 0;
    if
    :: intent_disk = intent
    :: skip
    fi;
    if
    :: mark_disk = mark
    :: skip
    fi;
    if
    :: jname_disk[0] = jname[0]
    :: skip
    fi;
    if
    :: jname_disk[1] = jname[1]
    :: skip
    fi;
    d_step {
        m = 0;
        do
        :: m == NAMES -> break
        :: else ->
            if
            :: disk[m] && lost[disk[m]] -> disk[m] = NONE
            :: else
            fi;
            name[m] = disk[m]; m++
        od;
        m = 0;
        do
        :: m == STEPS -> break
        :: else ->
            if
            :: !content[m] && op[m] != EXCHANGE && (op[m] == CREATE || op[m] == REPLACE) && new[m] == NEW(m) ->
                lost[NEW(m)] = true  /* the name may be there, with nothing in it */
            :: else
            fi;
            m++
        od;
        m = 0;
        intent = intent_disk; mark = mark_disk; jname[0] = jname_disk[0]; jname[1] = jname_disk[1]
    }
}

/* --- looking ------------------------------------------------------------------------------------------------------- */
byte any_old, any_new;
bool undecided;
inline look()
{   /* whether all is old, or all is new, at the names that nobody else has touched */
    any_old = false; any_new = false; m = 0;
    do
    :: m == NAMES -> break
    :: else ->
        if
        :: public[m] && !expected[m] ->
            if
            :: name[m] == was[m] && name[m] != wanted[m] -> any_old = true
            :: name[m] == wanted[m] && name[m] != was[m] -> any_new = true
            :: name[m] != wanted[m] && name[m] != was[m] -> any_old = true; any_new = true
            :: else
            fi;
            /* what is there has its content */
            if
            :: name[m] && lost[name[m]] -> any_old = true; any_new = true
            :: else
            fi
        :: else
        fi;
        m++
    od;
    m = 0
}

inline observe()
{   /* a reader who has the locks and has looked for a journal, and sees all at one moment */
    if
    :: (!locked || OUT(NO_LOCK)) && ((!jname[0] && !jname[1]) || OUT(NO_HOT)) ->
        look();
        assert(!(any_old && any_new));
        any_old = false; any_new = false
    :: else
    fi
}

inline read(F)
{   /* what a reader sees in one folder, with what was seen before */
    m = 0;
    do
    :: m == NAMES -> break
    :: else ->
        if
        :: public[m] && folder_of[m] == F && !expected[m] ->
            if
            :: name[m] == was[m] && name[m] != wanted[m] -> read_old = true
            :: name[m] == wanted[m] && name[m] != was[m] -> read_new = true
            :: else
            fi
        :: else
        fi;
        m++
    od;
    m = 0
}

inline recorded(object)
{   /* x: whether the transaction knows it */
    x = 0; m = 0;
    do
    :: m == STEPS -> break
    :: else ->
        if
        :: object == new[m] || object == old[m] -> x = 1
        :: else
        fi;
        m++
    od;
    m = 0
}

/* --- one step, and back -------------------------------------------------------------------------------------------- */
#define D i
#define S slot[i]

inline swap()
{   /* failed: somebody else's object was in the way */
    if
    :: op[i] == CREATE ->
        if
        :: name[D] == NONE -> change(S, NONE, D, name[S], true)
        :: else -> failed = true
        fi
    :: op[i] == REMOVE ->
        change(D, NONE, S, name[D], true)
    :: else ->
        x = name[D];
        change(D, name[S], S, x, false);
        x = 0
    fi
}

inline give_back()
{   /* what is in the slot is a stranger's: back to where it was */
    if
    :: name[D] == new[i] && new[i] != NONE ->
        x = name[D];
        change(D, name[S], S, x, false);
        x = 0
    :: name[D] == NONE -> change(S, NONE, D, name[S], true)
    :: else
    fi
}

inline check()
{   /* after the swap: is what came out what we had looked at? */
    if
    :: OUT(NO_CHECK)
    :: KEPT(NO_CHECK) && op[i] != CREATE && name[D] == new[i] && name[S] != old[i] -> give_back(); failed = true
    :: KEPT(NO_CHECK) && name[D] != new[i] -> failed = true
    :: else
    fi
}

inline undo()
{
    k = name[S];
    recorded(k);
    if
    :: OUT(NO_IDENTITY) && op[i] == CREATE && name[D] != NONE && name[S] == NONE -> change(D, NONE, S, name[D], true)
    :: OUT(NO_IDENTITY) && op[i] == REMOVE && name[D] == NONE && name[S] != NONE -> change(S, NONE, D, name[S], true)
    :: OUT(NO_IDENTITY) && (op[i] == REPLACE || op[i] == EXCHANGE) && name[S] == old[i] ->
        x = name[D];
        change(D, name[S], S, x, false);
        x = 0
    :: OUT(CREATE_RETURNS) && (name[D] == new[i] || (name[D] == NONE && op[i] == CREATE)) && k != NONE && k != new[i] && k != old[i] && !x ->
        x = 0;
        give_back()
    :: KEPT(CREATE_RETURNS) && KEPT(NO_IDENTITY) && op[i] != CREATE && name[D] == new[i] && k != NONE && k != new[i] && k != old[i] && !x ->
        x = 0;  /* a create displaces nothing, so what is in its slot is another step's */
        if
        :: KEPT(NO_RETURN) -> give_back()
        :: else
        fi
    :: else ->
        x = 0;
        if
        :: OUT(NO_IDENTITY)
        :: KEPT(NO_IDENTITY) && name[D] == old[i]                     /* untouched */
        :: KEPT(NO_IDENTITY) && name[D] != old[i] && name[D] != new[i] /* foreign, or another step's */
        :: KEPT(NO_IDENTITY) && name[D] != old[i] && name[D] == new[i] && op[i] == CREATE ->
            if
            :: name[S] == NONE -> change(D, NONE, S, name[D], true)
            :: else -> change(D, NONE, NOWHERE, 0, false)  /* it has another name: the twin of the slot */
            fi
        :: KEPT(NO_IDENTITY) && name[D] != old[i] && name[D] == new[i] && op[i] == REMOVE ->
            if
            :: name[S] == old[i] -> change(S, NONE, D, name[S], true)
            :: else
            fi
        :: name[D] != old[i] && name[D] == new[i] && (op[i] == REPLACE || op[i] == EXCHANGE) ->
            if
            :: name[S] == old[i] ->
                x = name[D];
                change(D, name[S], S, x, false);
                x = 0
            :: else
            fi
        fi
    fi;
    k = 0; x = 0
}

inline delete_slot(n)
{   /* a private name, and the object if it has no other */
    if
    :: !public[n] && name[n] != NONE ->
        k = name[n];
        x = 0; m = 0;
        do
        :: m == NAMES -> break
        :: else ->
            if
            :: m != n && name[m] == k -> x = 1
            :: else
            fi;
            m++
        od;
        m = 0;
        /* an original that cannot go back, for a stranger's object is there, is kept */
        if
        :: KEPT(NO_STRANDED) && !committed && k > STEPS && k <= 2 * STEPS && !x
        :: else ->
            if
            :: !x -> lost[k] = true
            :: else
            fi;
            change(n, NONE, NOWHERE, 0, false)
        fi;
        x = 0; k = 0
    :: else
    fi
}

inline delete_all()
{
    j = 0;
    do
    :: j == STEPS -> break
    :: else -> delete_slot(slot[j]); j++
    od;
    j = 0
}

/* --- others -------------------------------------------------------------------------------------------------------- */
inline lasting(n, object)
{   /* somebody else's durable change of one name; what was there is gone, wherever it belongs by then */
    k = 0;
    do
    :: k == NAMES -> break
    :: else ->
        if
        :: name[n] != NONE && (was[k] == name[n] || wanted[k] == name[n]) && !expected[k] -> expected[k] = NOWHERE
        /* in a chain, the names before it cannot get theirs back either: one would have to be emptied for the next */
        :: k < STEPS && slot[k % STEPS] == slot[n] && name[n] == new[n] && new[n] != NEW(n) && !expected[k] -> expected[k] = NOWHERE
        :: else
        fi;
        k++
    od;
    k = 0;
    sync_folder(folder_of[n]);
    name[n] = object; expected[n] = object;
    if
    :: MORE -> disk[n] = object
    :: else
    fi
}

proctype others()
{
    byte at;
end:
    do
    :: atomic { !stranger_came ->
        at = 0;
        do
        :: at < STEPS - 1 -> at++
        :: break
        od;
        skip;
        d_step {
            printf("a stranger replaces name %d\n", at);
            stranger_came = true;
            if
            :: name[at] == OLD(at) -> over_old[at] = true
            :: else
            fi;
            lasting(at, STRANGE);
            observe()
        };
        at = 0
       }
    :: d_step { !locked && !reading && !jname[0] && !jname[1] ->
        printf("a reader looks at folder 0\n");
        reading = true;
        read(0)
       }
    :: d_step { reading ->
        printf("the reader looks at folder 1\n");
        read(1);
        assert(!(read_old && read_new));
        reading = false; read_old = false; read_new = false
       }
    :: atomic { !other_came && !locked && !reading && prepared ->
        at = 0;
        do
        :: at < STEPS - 1 -> at++
        :: break
        od;
        if
        :: !expected[at] && !jname[folder_of[at]] && op[at] == EXCHANGE && !expected[slot[at]] && !jname[folder_of[slot[at]]] && name[at] != NONE && name[slot[at]] != NONE ->
            d_step {
                printf("T2 exchanges the names of step %d\n", at);
                other_came = true;
                k = name[at]; x = name[slot[at]];
                sync_folder(folder_of[at]); sync_folder(folder_of[slot[at]]);
                name[at] = x; expected[at] = x;
                name[slot[at]] = k; expected[slot[at]] = k;
                if
                :: MORE -> disk[at] = x; disk[slot[at]] = k
                :: else
                fi;
                k = 0; x = 0;
                observe()
            }
        :: !expected[at] && !jname[folder_of[at]] && op[at] != EXCHANGE ->
            d_step { printf("T2 replaces name %d\n", at); other_came = true; lasting(at, OTHERS); observe() }
        :: else
        fi;
        at = 0
       }
    od
}

/* --- the transaction, its death, and recovery ---------------------------------------------------------------------- */
/* Each call is one move, and between any two calls it may die and the others may do something.  What the process decides
 * for itself, from what only it changes, belongs to the call behind: a move more would be seen by nobody. */
#define MAY_DIE if :: MORE -> goto died :: skip fi

inline forget()
{   /* behind the last crash: see MORE */
    if
    :: MORE
    :: else ->
        m = 0;
        do
        :: m == QUEUE -> break
        :: else -> qa[m] = 0; qva[m] = 0; qb[m] = 0; qvb[m] = 0; qren[m] = false; m++
        od;
        m = 0;
        do
        :: m == NAMES -> break
        :: else -> disk[m] = NONE; m++
        od;
        m = 0;
        do
        :: m == STEPS -> break
        :: else -> content[m] = true; m++
        od;
        qn = 0; m = 0; intent_disk = 0; mark_disk = 0; jname_disk[0] = false; jname_disk[1] = false
    fi
}

inline set_up()
{
    atomic {
        i = 0;
        do
        :: i == STEPS -> break
        :: else ->
            if
            :: i == 0 -> f = 0
            :: i > 0 -> f = i & 1
            :: i > 0 && c_expr { anywhere } -> f = !(i & 1)
            fi;
            folder_of[i] = f; parent[f] = true; public[i] = true;
            slot[i] = STEPS + i; folder_of[STEPS + i] = 2 + f;
            if
            :: MAY_BE(1) -> op[i] = CREATE; new[i] = NEW(i)
            :: MAY_BE(2) -> op[i] = REPLACE; new[i] = NEW(i); old[i] = OLD(i)
            :: MAY_BE(3) -> op[i] = REMOVE; old[i] = OLD(i)
            :: MAY_BE(4) -> op[i] = EXCHANGE; new[i] = NEW(i); old[i] = OLD(i); public[STEPS + i] = true;
                if
                :: folder_of[STEPS + i] = 0; parent[0] = true
                :: folder_of[STEPS + i] = 1; parent[1] = true
                fi
            :: i > 0 && (op[i - 1] == REMOVE || op[i - 1] == REPLACE) && (MAY_BE(1) || MAY_BE(2)) ->
                /* what that one displaced, comes here */
                slot[i] = slot[i - 1]; new[i] = old[i - 1]; folder_of[STEPS + i] = folder_of[slot[i - 1]];
                if
                :: MAY_BE(1) -> op[i] = CREATE
                :: MAY_BE(2) -> op[i] = REPLACE; old[i] = OLD(i)
                fi
            fi;
            name[i] = old[i]; disk[i] = old[i];
            was[i] = old[i]; wanted[i] = new[i];
            if
            :: op[i] == EXCHANGE ->
                name[STEPS + i] = new[i]; disk[STEPS + i] = new[i]; was[STEPS + i] = new[i]; wanted[STEPS + i] = old[i];
                content[i] = true
            :: else
            fi;
            f = 0;
            i++
        od;
        i = 0
    }
}

init {
    c_code {
        rule = getenv("RULE") ? atoi(getenv("RULE")) : 0;
        most = getenv("CRASHES") ? atoi(getenv("CRASHES")) : 1;
        anywhere = getenv("ANYWHERE") != 0;
        nobody = getenv("NOBODY") != 0;
        const char *digit = getenv("KINDS") ? getenv("KINDS") : "";
        for (int step = 0; step < STEPS && *digit; step++) kinds[step] = *digit++ - '0';
    };
    set_up();
    if
    :: c_expr { !nobody } -> run others()
    :: else
    fi;
    skip;
    d_step {
        i = 0;
        do
        :: i == STEPS -> break
        :: else ->
            printf("step %d: kind %d of name %d (folder %d) and name %d (folder %d)\n", i, op[i], i, folder_of[i], slot[i], folder_of[slot[i]]);
            i++
        od;
        i = 0
    };

    /* stage: slots get their names, and nothing of it lasts */
    d_step {
        i = 0;
        do
        :: i == STEPS -> break
        :: else ->
            if
            :: (op[i] == CREATE || op[i] == REPLACE) && new[i] == NEW(i) -> change(S, NEW(i), NOWHERE, 0, false)
            :: else
            fi;
            i++
        od;
        i = 0
    };
    atomic {
        MAY_DIE;
        d_step { (!reading || OUT(NO_LOCK)) -> printf("T1: locks, and writes the journal\n"); locked = true; intent = 1 }
    };
    atomic {
        MAY_DIE;
        d_step { printf("T1: the journal gets its name in folder 0\n"); jname[0] = parent[0]; prepared = !parent[1] }
    };
    atomic {
        MAY_DIE;
        if
        :: OUT(JOURNAL_IN_ONE) -> prepared = true
        :: else ->
            d_step { printf("T1: the journal gets its name in folder 1\n"); jname[1] = parent[1]; prepared = true }
        fi
    };
    /* B1, in an order that lets any part of it be the last thing that happened */
    atomic {
        MAY_DIE;
        if
        :: KEPT(NO_B1_CONTENT) -> d_step { i = 0; do :: i == STEPS -> break :: else -> content[i] = true; i++ od; i = 0 }
        :: else
        fi
    };
    atomic {
        MAY_DIE;
        if
        :: KEPT(NO_B1_JOURNAL) -> d_step { printf("T1: syncs the journal\n"); intent_disk = intent }
        :: else
        fi
    };
    atomic {
        MAY_DIE;
        if
        :: KEPT(NO_B1_PARENTS) -> d_step { printf("T1: syncs folder 0\n"); sync_names(0) }
        :: else
        fi
    };
    atomic {
        MAY_DIE;
        if
        :: KEPT(NO_B1_PARENTS) -> d_step { printf("T1: syncs folder 1\n"); sync_names(1) }
        :: else
        fi
    };
    atomic {
        MAY_DIE;
        if
        :: KEPT(NO_B1_SLOTS) -> d_step { printf("T1: syncs the private folders\n"); sync_names(2); sync_names(3) }
        :: else
        fi
    };

    /* publish */
    do
    :: atomic { !failed && i < STEPS ->
        MAY_DIE;
        d_step { printf("T1: swaps step %d\n", i); swap(); observe() }
       };
       atomic {
        MAY_DIE;
        if
        :: failed -> i++
        :: else ->
            d_step { printf("T1: checks step %d\n", i); check(); observe(); i++ };
            if
            :: skip
            :: failed = true  /* anything at all */
            fi
        fi
       }
    :: failed -> goto roll_back
    :: !failed && i == STEPS -> i = 0; break
    od;
    if
    :: OUT(DISPLACED_EARLY) ->
        atomic { MAY_DIE; d_step { committed = true; delete_all(); committed = false } }
    :: else
    fi;

    /* confirm */
    if
    :: KEPT(B2_AFTER_B3) && KEPT(NO_B2) ->
        atomic { MAY_DIE; d_step { sync_folder(0) } };
        atomic { MAY_DIE; d_step { sync_folder(1) } };
        atomic { MAY_DIE; d_step { sync_folder(2); sync_folder(3) } }
    :: else
    fi;
    atomic { MAY_DIE; d_step { printf("T1: writes the mark\n"); mark = 1 } };
    if
    :: KEPT(NO_B3) -> atomic { MAY_DIE; d_step { printf("the outcome lasts\n"); mark_disk = mark } }
    :: else
    fi;
    if
    :: OUT(B2_AFTER_B3) ->
        atomic { MAY_DIE; d_step { sync_folder(0); sync_folder(1); sync_folder(2); sync_folder(3) } }
    :: else
    fi;
    /* clean up */
    atomic {
        MAY_DIE;
        d_step { printf("T1: the journal loses its name in folder 0\n"); committed = true; jname[0] = false; observe() }
    };
    atomic { MAY_DIE; d_step { jname[1] = false; observe() } };
    atomic { MAY_DIE; d_step { printf("T1: unlocks\n"); locked = false; observe() } };
    atomic {
        MAY_DIE;
        d_step { printf("T1: deletes what lies in the slots, and returns\n"); delete_all(); told_new = true; observe() }
    };
    goto over;

roll_back:
    skip;
    if
    :: OUT(UNDO_FORWARD) ->
        /* i is behind the last step that was begun */
        f = i; i = 0;
        do
        :: i == f -> break
        :: else -> atomic { MAY_DIE; d_step { printf("undo of step %d\n", i); undo(); observe(); i++ } }
        od;
        i = 0; f = 0
    :: else ->
        do
        :: i == 0 -> break
        :: atomic { i > 0 -> MAY_DIE; d_step { i--; printf("undo of step %d\n", i); undo(); observe() } }
        od
    fi;
    if
    :: OUT(STAGED_EARLY) -> atomic { MAY_DIE; d_step { delete_all() } }
    :: else
    fi;
    if
    :: KEPT(NO_UNDO_SYNC) ->
        atomic { MAY_DIE; d_step { sync_folder(0) } };
        atomic { MAY_DIE; d_step { sync_folder(1); sync_folder(2); sync_folder(3) } }
    :: else
    fi;
    if
    :: KEPT(NO_UNDONE) -> atomic { MAY_DIE; d_step { printf("T1: writes undone\n"); mark = 2 } };
        if
        :: KEPT(NO_UNDONE_SYNC) -> atomic { MAY_DIE; d_step { printf("the outcome lasts\n"); mark_disk = mark } }
        :: else
        fi
    :: else
    fi;
    atomic { MAY_DIE; d_step { jname[0] = false; observe() } };
    atomic { MAY_DIE; d_step { jname[1] = false; observe() } };
    atomic { MAY_DIE; d_step { printf("T1: unlocks\n"); locked = false; observe() } };
    atomic {
        MAY_DIE;
        d_step { printf("T1: deletes what lies in the slots, and fails\n"); delete_all(); told_old = true; observe() }
    };
    goto over;

    /* --- it died */
died:
    atomic {
        crashes++; locked = false; i = 0; j = 0; k = 0; x = 0; f = 0; failed = false; committed = false;
        trusted = false; undecided = false;
        if
        :: printf("KILLED\n")    /* what is in memory stays there for all others */
        :: printf("POWER CUT\n"); power_cut()
        fi;
        d_step { forget(); observe() };
        /* recover both folders, one after the other, beginning with any */
        if
        :: f = 0
        :: f = 1
        fi
    };

again:
    if
    :: !jname[f] -> goto settled
    :: jname[f] && !intent -> atomic { MAY_DIE; d_step { jname[f] = false; observe() } }; goto settled
    :: jname[f] && intent ->
        atomic {
            MAY_DIE;
            d_step { (!reading || OUT(NO_LOCK)) ->
                printf("recovery: locks\n"); locked = true; committed = (mark == 1);
                trusted = (mark != 0 && OUT(TRUST_OUTCOME));
                i = (mark == 0 && (OUT(NO_NEVER_PREPARED) || !((parent[0] && !jname[0]) || (parent[1] && !jname[1]))) -> STEPS : 0)
            }
        }
    fi;
    if
    :: OUT(UNDO_FORWARD) ->
        if
        :: i > 0 ->
            i = 0;
            do
            :: i == STEPS -> break
            :: else -> atomic { MAY_DIE; d_step { printf("undo of step %d\n", i); undo(); observe(); i++ } }
            od;
            i = 0
        :: else
        fi
    :: else ->
        do
        :: i == 0 -> break
        :: atomic { i > 0 -> MAY_DIE; d_step { i--; printf("undo of step %d\n", i); undo(); observe() } }
        od
    fi;
    if
    :: KEPT(NO_RECOVERY_SYNC) && !trusted ->
        atomic { MAY_DIE; d_step { sync_folder(0); sync_folder(1) } };
        atomic { MAY_DIE; d_step { sync_folder(2); sync_folder(3) } }
    :: else
    fi;
    if
    :: KEPT(NO_RECOVERY_RECORD) && !trusted ->
        atomic { MAY_DIE; d_step { printf("recovery: writes the outcome\n"); mark = (committed -> 1 : 2) } };
        atomic { MAY_DIE; d_step { printf("the outcome lasts\n"); mark_disk = mark } }
    :: else
    fi;
    atomic { MAY_DIE; d_step { trusted = false; jname[0] = false; observe() } };
    atomic { MAY_DIE; d_step { jname[1] = false; observe() } };
    atomic {
        MAY_DIE;
        d_step { printf("recovery: deletes what lies in the slots, and unlocks\n"); locked = false; delete_all(); observe() }
    };
settled:
    /* a private folder without a journal: its transaction was never prepared, or it is over */
    skip;
    atomic {
        MAY_DIE;
        d_step {
            if
            :: !jname[f] ->
                j = 0;
                do
                :: j == STEPS -> break
                :: else ->
                    if
                    :: folder_of[slot[j]] == 2 + f -> delete_slot(slot[j])
                    :: else
                    fi;
                    j++
                od;
                j = 0
            :: else
            fi;
            observe()
        };
        if
        :: OUT(JOURNAL_IN_ONE) ->
            /* one call, for one folder of the transaction, is enough: all is old or all is new */
            d_step { look(); assert(!(any_old && any_new)); any_old = false; any_new = false }
        :: else
        fi
    };
    if
    :: !undecided -> undecided = true; f = 1 - f; goto again
    :: else
    fi;

over:
    skip;
    atomic {
        MAY_DIE;  /* also when all is over: what was promised must last */
        d_step {
            failed = false; i = 0; undecided = false; f = 0; committed = false;
            look();
            assert(!(any_old && any_new));
            assert(!(told_new && any_old));
            assert(!(told_old && any_new));
            m = 0;
            do
            :: m == NAMES -> break
            :: else -> assert(!expected[m] || expected[m] == NOWHERE || name[m] == expected[m]); m++
            od;
            m = 0;
            do
            :: m == STEPS -> break
            :: else ->
                /* an original that was not replaced by the stranger itself is somewhere, unless it was committed */
                assert(!(any_old && !any_new && old[m] == OLD(m) && !over_old[m] && !other_came && lost[OLD(m)]));
                m++
            od
        }
    }
}
