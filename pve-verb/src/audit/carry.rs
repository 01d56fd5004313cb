//! From tmpfs to disk: appending what is pending, and finding out where the disk's log ends when that is not known or not so.

use proto::{Sha256Hex, escape_cut};
use serde_json::{Map, Value, json};
use std::time::Instant;

use super::chain::{Carrying, DiskEnd, Held, Standing, intent, newest, unreviewed};
use super::flood::{CROWDED, Floods};
use super::line::{Kind, Line, Position, claimed_head, hash, signed_head};
use super::{CLOCK_BEHIND_MS, Log, journal};
use crate::host;
use crate::writer::{Op, Reply, TORN_SHOWN, Tail};

/// A segment of this length or more is not continued.
const SEGMENT: u64 = 16 << 20;
/// What is carried at once: little enough for a read's time, so that reads alone carry it all in the end.
const BATCH: usize = 1 << 20;

impl Log {
    /// The chain's next line, on tmpfs.
    pub(super) fn push(&mut self, kind: Kind, facts: Map<String, Value>, until: Instant) -> Result<Position, String> {
        let held = self.chain.lock(until)?;
        let mut standing = held.standing();
        self.clock = behind(&standing);
        // What was counted and is due is told by whoever comes next.
        self.summaries(&held, &mut standing, &mut Floods::load(&held));
        let line = self.push_held(&held, &mut standing, kind, facts)?;
        Ok(Position { seq: line.seq, prev: line.prev, head: line.hash, degraded: None })
    }

    /// Counts a read or a refusal where there are too many for a record each; none where it gets one.
    pub(super) fn count(&self, kind: Kind, facts: &Map<String, Value>, until: Instant) -> Option<String> {
        let held = self.chain.lock(until).ok()?;
        let mut standing = held.standing();
        let mut floods = Floods::load(&held);
        let crowded = standing.tally.bytes >= CROWDED;
        if kind != Kind::Refused && !(kind == Kind::Read && crowded) {
            return None;
        }
        let counted = floods.counts(kind, facts, crowded, (host::now(), host::boot_ms()));
        // A count that can't be kept is none: then it is recorded.
        let counted = floods.store(&held) && counted;
        if counted {
            self.summaries(&held, &mut standing, &mut floods);
        }
        let why =
            if crowded { "the disk takes no records and there are many on tmpfs" } else { "this key had a thousand refusals in an hour" };
        counted.then(|| format!("this answer has no audit record of its own, it is counted for the next summary record: {why}"))
    }

    fn summaries(&self, held: &Held<'_>, standing: &mut Standing, floods: &mut Floods) {
        let due = floods.due(host::boot_ms());
        // First that it is told, then the telling: a kill between the two loses a count; the other way round it would be told twice.
        if due.is_empty() || !floods.store(held) {
            return;
        }
        for facts in due {
            // Where this fails so does the caller's own record, and says why.
            let _ = self.push_held(held, standing, Kind::Summary, facts);
        }
    }

    /// Tells the log who answers from here on, unless that is what it was told last. On tmpfs only; the record that follows carries it.
    pub(super) fn attest(&self, facts: Map<String, Value>, until: Instant) {
        let (Ok(held), Ok(told)) = (self.chain.lock(until), serde_json::to_vec(&facts)) else { return };
        // Where it can't be kept, the next call tells it again: a record too many.
        if !held.was_told(&told) && self.push_held(&held, &mut held.standing(), Kind::Start, facts).is_ok() {
            held.tell(&told);
        }
    }

    fn push_held(&self, held: &Held<'_>, standing: &mut Standing, kind: Kind, facts: Map<String, Value>) -> Result<Line, String> {
        let end = match standing.end() {
            Some(end) => end,
            None => {
                // After a restart with a hung disk nobody knows where the log ends. The records must go somewhere: they start a chain
                // that says so, and whoever finds the disk working takes them into the real one.
                let facts = facts_of(json!({"what": "the disk's log could not be read; this chain is taken into it later"}));
                let first = Line::next((0, Sha256Hex::zero()), &self.boot_id, Kind::Repair, facts, self.signer.as_ref())?;
                held.push(&first, standing).map_err(|e| e.to_string())?;
                journal::send(self.journal, &first.text);
                (first.seq, first.hash)
            }
        };
        let facts = timed(standing, facts);
        let line = Line::next(end, &self.boot_id, kind, facts, self.signer.as_ref())?;
        held.push(&line, standing).map_err(|e| format!("the overflow on tmpfs could not be written: {e}"))?;
        journal::send(self.journal, &line.text);
        Ok(line)
    }

    /// Carries what is pending to disk, `ours` among it.
    pub(super) fn carry(&self, ours: Option<&Sha256Hex>, until: Instant) -> Result<Carried, String> {
        let carrying = self.chain.carrying(until)?;
        let mut opened = false;
        // Bounded: against a disk that says one thing and does another, and by time against others who append all the while.
        let mut turns = 0;
        while turns < 4 {
            turns += 1;
            let snapshot = self.chain.lock(until)?.snapshot();
            let known = snapshot.known();
            let Some(end) = known.disk else {
                if self.learn_carrying(&carrying, ours, until)? {
                    return Ok(Carried::Undone);
                }
                continue;
            };
            let Some(first) = known.pending.first() else {
                self.chain.lock(until)?.keep_what_is_not_on_disk();
                return Ok(Carried::Done { opened });
            };
            if first.prev != end.head {
                if self.learn_carrying(&carrying, ours, until)? {
                    return Ok(Carried::Undone);
                }
                continue;
            }
            let batch = batch(&known.pending);
            let starts = (end.segment == 0 || end.length >= SEGMENT) && end.torn == 0;
            let (segment, at) = if starts { (first.seq, 0) } else { (end.segment, end.length) };
            match self.append_lines(segment, at, end.torn, batch, until)? {
                None => {
                    if self.learn_carrying(&carrying, ours, until)? {
                        return Ok(Carried::Undone);
                    }
                }
                Some(length) => {
                    turns = 0;
                    opened |= starts && end.segment != 0;
                    let held = self.chain.lock(until)?;
                    let Some(last) = batch.last() else { continue };
                    let unreviewed = unreviewed(end.unreviewed, batch);
                    let (newest, intent) = (newest(end.newest, batch), intent(end.intent, batch));
                    held.remember(&DiskEnd {
                        segment,
                        length,
                        torn: 0,
                        seq: last.seq,
                        head: last.hash.clone(),
                        unreviewed,
                        newest,
                        intent,
                    });
                    held.keep_what_is_not_on_disk();
                }
            }
        }
        let snapshot = self.chain.lock(until)?.snapshot();
        match snapshot.known().pending.first() {
            None => Ok(Carried::Done { opened }),
            Some(_) => Err("the disk's log changed while it was being continued".to_owned()),
        }
    }

    /// Appends on disk; the new length, or none where the log does not end there.
    fn append_lines(&self, segment: u64, at: u64, torn: u64, lines: &[Line], until: Instant) -> Result<Option<u64>, String> {
        let Some(last) = lines.last() else { return Ok(Some(at)) };
        let payload: Vec<u8> = lines.iter().flat_map(|l| l.text.iter().copied().chain(*b"\n")).collect();
        let head = signed_head(last.seq, &last.hash, self.signer.as_ref())?;
        let op = Op::LogAppend { segment, at, torn, head };
        match self.disk.call(&op, &payload, until.saturating_duration_since(Instant::now())) {
            Ok(Reply::Done {}) => Ok(Some(at + payload.len() as u64)),
            Ok(Reply::Mismatch { .. }) => Ok(None),
            Ok(other) => Err(format!("the writer answered {other:?}")),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Where tmpfs takes nothing: the line goes to disk alone, with both locks held, after whatever was pending.
    pub(super) fn straight_to_disk(&self, kind: Kind, facts: Map<String, Value>, until: Instant) -> Result<Position, String> {
        let _carrying = self.chain.carrying(until)?;
        let held = self.chain.lock(until)?;
        // Not from what tmpfs remembers: where it takes nothing, it may remember nothing new either.
        let (tail, head) = self.ask_tail(until)?;
        let plan = reconcile(tail, head, held.load().disk, &held.overflow());
        let repairs = plan.repairs();
        let (end, mut lines) = (plan.end, plan.pending);
        for (kind, facts) in repairs.into_iter().map(|r| (Kind::Repair, r)).chain([(kind, facts)]) {
            let before = lines.last().map_or_else(|| (end.seq, end.head.clone()), |l| (l.seq, l.hash.clone()));
            let line = Line::next(before, &self.boot_id, kind, facts, self.signer.as_ref())?;
            journal::send(self.journal, &line.text);
            lines.push(line);
        }
        let (Some(first), Some(line)) = (lines.first(), lines.last().cloned()) else { return Err("there is nothing to write".to_owned()) };
        let (segment, at) = if end.segment == 0 { (first.seq, 0) } else { (end.segment, end.length) };
        let Some(length) = self.append_lines(segment, at, end.torn, &lines, until)? else {
            return Err("the disk's log does not end where it should".to_owned());
        };
        let unreviewed = unreviewed(end.unreviewed, &lines);
        let (newest, intent) = (newest(end.newest, &lines), intent(end.intent, &lines));
        held.remember(&DiskEnd { segment, length, torn: 0, seq: line.seq, head: line.hash.clone(), unreviewed, newest, intent });
        held.keep_what_is_not_on_disk();
        Ok(Position {
            seq: line.seq,
            prev: line.prev,
            head: line.hash,
            degraded: Some("/run takes no audit records; they go to the disk alone".to_owned()),
        })
    }

    /// Asks the disk where its log ends.
    pub(super) fn learn(&self, until: Instant) -> Result<(), String> {
        if self.chain.knows_the_disk() {
            return Ok(());
        }
        let carrying = self.chain.carrying(until)?;
        if self.chain.knows_the_disk() {
            return Ok(());
        }
        self.learn_carrying(&carrying, None, until).map(|_| ())
    }

    fn ask_tail(&self, until: Instant) -> Result<(Option<Tail>, Option<String>), String> {
        match self.disk.call(&Op::LogTail {}, &[], until.saturating_duration_since(Instant::now())) {
            Ok(Reply::Tail { tail, head }) => Ok((tail.map(|tail| *tail), head)),
            Ok(other) => Err(format!("the writer answered {other:?}")),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Asks the disk where its log ends; true where the line `ours` does not follow that end, and has to be made anew.
    fn learn_carrying(&self, _: &Carrying, ours: Option<&Sha256Hex>, until: Instant) -> Result<bool, String> {
        let (tail, head) = self.ask_tail(until)?;
        let held = self.chain.lock(until)?;
        let mut plan = reconcile(tail, head, held.load().disk, &held.overflow());
        let orphans = plan.orphans.len();
        // Nobody was told of it yet, so it need not be kept as an orphan.
        plan.orphans.retain(|line| ours.is_none_or(|o| hash(line) != *o));
        let undone = plan.orphans.len() < orphans;
        held.remember(&plan.end);
        held.keep(&plan.pending).map_err(|e| format!("the overflow on tmpfs could not be written: {e}"))?;
        let mut standing = held.standing();
        for facts in plan.repairs() {
            self.push_held(&held, &mut standing, Kind::Repair, facts)?;
        }
        Ok(undone)
    }
}

impl Held<'_> {
    fn keep_what_is_not_on_disk(&self) {
        // Where this fails the lines stay, and are skipped as already carried.
        let _ = self.keep(&self.load().pending);
    }
}

/// By how many milliseconds the clock is behind the newest record, where that is more than clocks are set by.
fn behind_ms(standing: &Standing) -> Option<u64> {
    let behind = standing.newest()?.unix_ms().checked_sub(host::now().unix_ms())?;
    (behind >= CLOCK_BEHIND_MS).then_some(behind)
}

fn behind(standing: &Standing) -> Option<String> {
    let seconds = behind_ms(standing)? / 1000;
    Some(format!("the host's clock is {seconds} s behind the newest audit record: it was set back, or was wrong before"))
}

/// A record that is older than the one before it says so itself: its number is the order, its time is not.
fn timed(standing: &Standing, mut facts: Map<String, Value>) -> Map<String, Value> {
    if let Some(behind) = behind_ms(standing) {
        facts.insert("clock_behind_ms".to_owned(), json!(behind));
    }
    facts
}

/// The first lines, up to [`BATCH`] bytes, at least one.
fn batch(lines: &[Line]) -> &[Line] {
    let mut bytes = 0;
    let n = lines
        .iter()
        .take_while(|l| {
            (bytes + l.text.len() <= BATCH || bytes == 0) && {
                bytes += l.text.len() + 1;
                true
            }
        })
        .count();
    lines.get(..n).unwrap_or(lines)
}

/// How carrying went.
pub(super) enum Carried {
    /// All is on disk.
    Done {
        /// Whether that opened a segment after another.
        opened: bool,
    },
    /// The disk's log ended elsewhere than was known. It is repaired, and our line has to be made anew behind the repair.
    Undone,
}

/// What follows from what the disk says.
struct Plan {
    end: DiskEnd,
    /// The lines that follow it.
    pending: Vec<Line>,
    /// What a repair record has to tell about the disk.
    damage: Option<Value>,
    /// Lines that follow nothing on disk. They are kept inside repair records: each is signed, and somebody may hold its receipt.
    orphans: Vec<Vec<u8>>,
}

impl Plan {
    fn repairs(&self) -> Vec<Map<String, Value>> {
        let what = "a record that was made while the disk's log could not be read, or ended elsewhere";
        let orphans = self.orphans.iter().map(|line| json!({"what": what, "line": String::from_utf8_lossy(line)}));
        self.damage.iter().cloned().chain(orphans).map(facts_of).collect()
    }
}

/// Pure, so that every kind of damage can be thrown at it.
fn reconcile(tail: Option<Tail>, head: Option<String>, expected: Option<DiskEnd>, overflow: &[u8]) -> Plan {
    let empty =
        DiskEnd { segment: 0, length: 0, torn: 0, seq: 0, head: Sha256Hex::zero(), unreviewed: Some(0), newest: None, intent: None };
    let (mut end, torn_text, damaged) = match tail {
        None => (empty, String::new(), None),
        Some(t) => (
            DiskEnd {
                segment: t.segment,
                length: t.length,
                torn: t.torn,
                seq: t.seq,
                head: t.hash,
                unreviewed: t.unreviewed,
                newest: t.at,
                intent: t.intent,
            },
            t.torn_text,
            t.damaged,
        ),
    };
    // What was once seen stays seen, also where the disk's log is now shorter.
    end.newest = end.newest.max(expected.as_ref().and_then(|e| e.newest));
    let raw: Vec<&[u8]> = overflow.split(|b| *b == b'\n').filter(|l| !l.is_empty()).collect();
    let lines: Vec<Line> = raw.iter().filter_map(|l| Line::read(l)).collect();
    let chained = lines.len() == raw.len() && lines.windows(2).all(|w| matches!(w, [a, b] if a.hash == b.prev && a.seq + 1 == b.seq));
    // The disk may have some of these lines already: a carrier was killed, or abandoned and completed after all.
    let from = match lines.iter().position(|l| l.hash == end.head) {
        Some(n) => Some(n + 1),
        None => lines.first().is_some_and(|l| l.prev == end.head && l.seq == end.seq + 1).then_some(0),
    };
    let (pending, orphans) = match from {
        Some(n) if chained => (lines.get(n..).unwrap_or_default().to_vec(), Vec::new()),
        _ => (Vec::new(), raw),
    };
    let lost =
        expected.filter(|e| e.seq > end.seq || e.seq == end.seq && e.head != end.head).map(|e| json!({"seq": e.seq, "head": e.head}));
    let ahead = head.filter(|text| claimed_head(text).is_none_or(|(seq, hash)| seq > end.seq || seq == end.seq && hash != end.head));
    // A line that an abandoned writer half wrote is on tmpfs as a whole, and is written again.
    let half = pending.first().and_then(|l| l.text.get(..usize::try_from(end.torn).ok()?));
    let torn = end.torn > 0 && half.is_none_or(|h| escape_cut(h, TORN_SHOWN) != torn_text);
    let damage = (torn || damaged.is_some() || lost.is_some() || ahead.is_some()).then(|| {
        json!({
            "what": "the log on disk is damaged; it goes on after its last whole line",
            "continues": {"seq": end.seq, "head": end.head}, "damaged": damaged, "lost": lost, "head_json": ahead,
            "torn_bytes": end.torn, "torn": torn.then_some(torn_text),
        })
    });
    Plan { end, pending, damage, orphans: orphans.into_iter().map(<[u8]>::to_vec).collect() }
}

fn facts_of(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(facts) => facts,
        other => [("what".to_owned(), other)].into_iter().collect(),
    }
}
