//! Frames in, verdicts out: the tables of the manual's message flow and of traps 13 to 25, 36 and 49 to 53.

use super::*;
use BackendTag as B;

type Line = Pipeline<u32>;

fn forward(line: &mut Line, requests: &[Request]) {
    for (note, &request) in (0..).zip(requests) {
        line.expect(request, Fate::Forward, note);
    }
}

fn feed(line: &mut Line, tags: &[B]) {
    for &tag in tags {
        let verdict = line.on_frame(tag, b"").unwrap();
        assert_eq!(verdict.action, Action::Forward, "{tag:?}");
    }
}

fn ready(line: &mut Line, status: &[u8]) {
    let verdict = line.on_frame(B::ReadyForQuery, status).unwrap();
    assert!(verdict.ready.is_some());
}

const QUERY_GROUP: [Request; 5] = [
    Request::Parse,
    Request::Bind,
    Request::DescribePortal,
    Request::Execute,
    Request::Sync,
];

#[test]
fn a_simple_query_is_settled_by_its_ready_for_query() {
    let mut line = Line::default();
    forward(&mut line, &[Request::Query]);
    feed(&mut line, &[B::RowDescription, B::DataRow, B::CommandComplete]);
    assert!(!line.is_settled());
    ready(&mut line, b"I");
    assert!(line.is_settled());
}

#[test]
fn a_transaction_block_is_not_settled() {
    let mut line = Line::default();
    forward(&mut line, &[Request::Query]);
    feed(&mut line, &[B::CommandComplete]);
    ready(&mut line, b"T");
    assert!(line.owes_nothing() && !line.is_settled());
}

/// Trap 13: every Sync owes one ReadyForQuery; the first of two does not settle the line.
#[test]
fn trap_13_two_syncs_in_flight_owe_two_readies() {
    let mut line = Line::default();
    forward(&mut line, &QUERY_GROUP);
    forward(&mut line, &QUERY_GROUP);
    for _ in 0..2 {
        assert!(!line.is_settled());
        feed(
            &mut line,
            &[
                B::ParseComplete,
                B::BindComplete,
                B::RowDescription,
                B::DataRow,
                B::CommandComplete,
            ],
        );
        ready(&mut line, b"I");
    }
    assert!(line.is_settled());
}

/// Trap 14: an error skips everything up to Sync, a Query and a FunctionCall included.
#[test]
fn trap_14_sync_after_error_ends_the_skip() {
    let mut line = Line::default();
    forward(
        &mut line,
        &[
            Request::Parse,
            Request::Query,
            Request::FunctionCall,
            Request::Sync,
            Request::Query,
        ],
    );
    feed(&mut line, &[B::ErrorResponse]);
    assert_eq!(line.take_dropped(), [2, 1, 0]);
    assert!(!line.is_skipping());
    ready(&mut line, b"I");
    assert!(!line.is_settled());
    feed(&mut line, &[B::CommandComplete]);
    ready(&mut line, b"I");
    assert!(line.is_settled());
}

#[test]
fn requests_after_an_error_are_dropped_until_the_sync_arrives() {
    let mut line = Line::default();
    forward(&mut line, &[Request::Parse]);
    feed(&mut line, &[B::ErrorResponse]);
    assert!(line.is_skipping());
    assert!(!line.expect(Request::Bind, Fate::Forward, 8));
    assert!(!line.expect(Request::Query, Fate::Forward, 9));
    assert_eq!(line.take_dropped(), [0, 8, 9]);
    assert!(line.expect(Request::Sync, Fate::Forward, 1));
    ready(&mut line, b"I");
    assert!(line.is_settled());
}

/// Trap 15: answers of ours keep their place, and vanish when the group failed before them.
#[test]
fn trap_15_an_answer_waits_for_its_turn_and_dies_with_its_group() {
    let mut line = Line::default();
    forward(&mut line, &[Request::Bind, Request::Execute]);
    assert!(!line.expect(Request::Parse, Fate::Answer(Bytes::from_static(b"1")), 7));
    line.expect(Request::Sync, Fate::Forward, 8);
    assert_eq!(line.next_due(), None);
    feed(&mut line, &[B::BindComplete, B::CommandComplete]);
    assert_eq!(
        line.next_due(),
        Some(Due::Answer(Request::Parse, Bytes::from_static(b"1"), 7))
    );
    ready(&mut line, b"I");

    forward(&mut line, &[Request::Bind]);
    line.expect(Request::Parse, Fate::Answer(Bytes::from_static(b"1")), 7);
    line.expect(Request::Sync, Fate::Forward, 8);
    feed(&mut line, &[B::ErrorResponse]);
    assert_eq!(line.next_due(), None);
    assert_eq!(line.take_dropped(), [7, 0]);
}

/// Trap 16: a Parse answered by us gets 25P02 where PostgreSQL would have said so, once, and the sent rest is silent.
#[test]
fn trap_16_a_failed_transaction_refuses_an_answered_parse() {
    let mut line = Line::default();
    forward(&mut line, &[Request::Query]);
    line.expect(Request::Parse, Fate::AnswerUnlessFailed(Bytes::from_static(b"1")), 1);
    line.expect(Request::Bind, Fate::Forward, 2);
    line.expect(Request::Sync, Fate::Forward, 3);
    feed(&mut line, &[B::ErrorResponse]);
    ready(&mut line, b"E");
    assert_eq!(line.next_due(), Some(Due::Refusal(Request::Parse)));
    assert_eq!(line.next_due(), None);
    assert_eq!(line.on_frame(B::ErrorResponse, b"").unwrap().action, Action::Swallow);
    ready(&mut line, b"E");
    assert!(line.owes_nothing());
    assert_eq!(line.take_dropped(), [1, 2]);
}

/// Trap 17: after Flush the group is answered but not over: nothing is settled before its Sync.
#[test]
fn trap_17_a_flushed_group_is_not_settled_without_its_sync() {
    let mut line = Line::default();
    forward(&mut line, &[Request::Parse, Request::DescribeStatement]);
    feed(&mut line, &[B::ParseComplete, B::ParameterDescription, B::NoData]);
    assert!(line.is_quiet() && !line.is_settled());
    forward(&mut line, &[Request::Sync]);
    ready(&mut line, b"I");
    assert!(line.is_settled());
}

/// Trap 21 and 34: PortalSuspended and EmptyQueryResponse end an Execute.
#[test]
fn trap_21_34_suspension_and_emptiness_end_an_execute() {
    let mut line = Line::default();
    forward(&mut line, &[Request::Execute, Request::Execute, Request::Sync]);
    feed(&mut line, &[B::DataRow, B::PortalSuspended, B::EmptyQueryResponse]);
    ready(&mut line, b"I");
    assert!(line.is_settled());
}

/// Trap 36: asynchronous messages change nothing, wherever they come.
#[test]
fn trap_36_asynchronous_messages_are_not_replies() {
    let mut line = Line::default();
    feed(&mut line, &[B::NoticeResponse, B::ParameterStatus]);
    forward(&mut line, &QUERY_GROUP);
    feed(
        &mut line,
        &[
            B::ParseComplete,
            B::NotificationResponse,
            B::BindComplete,
            B::NoticeResponse,
        ],
    );
    feed(&mut line, &[B::RowDescription, B::CommandComplete]);
    ready(&mut line, b"I");
    assert!(line.is_settled());
}

#[test]
fn a_swallowed_query_hides_all_of_its_reply() {
    let mut line = Line::default();
    line.expect(Request::Query, Fate::Swallow, 0);
    line.expect(Request::Query, Fate::Forward, 1);
    for tag in [
        B::CommandComplete,
        B::RowDescription,
        B::DataRow,
        B::NoticeResponse,
        B::CommandComplete,
    ] {
        assert_eq!(line.on_frame(tag, b"").unwrap().action, Action::Swallow);
    }
    assert_eq!(line.on_frame(B::ReadyForQuery, b"I").unwrap().action, Action::Swallow);
    feed(&mut line, &[B::CommandComplete]);
    ready(&mut line, b"I");
    assert!(line.is_settled());
}

#[test]
fn a_failed_prelude_is_told_as_ours() {
    let mut line = Line::default();
    line.expect(Request::Query, Fate::Swallow, 0);
    line.expect(Request::Query, Fate::Forward, 1);
    let verdict = line.on_frame(B::ErrorResponse, b"").unwrap();
    assert!(verdict.ours_failed);
    assert_eq!(
        line.abandon(),
        Abandoned {
            readies: 1,
            mid_group: false
        }
    );
    assert_eq!(line.take_dropped(), [1, 0]);
}

#[test]
fn an_injected_parse_that_fails_stands_for_the_bind() {
    let mut line = Line::default();
    line.expect(Request::Parse, Fate::Swallow, 0);
    forward(&mut line, &[Request::Bind, Request::Execute, Request::Sync]);
    let verdict = line.on_frame(B::ErrorResponse, b"C42P01\0\0").unwrap();
    assert_eq!((verdict.action, verdict.ours_failed), (Action::Forward, false));
    ready(&mut line, b"I");
    assert!(line.is_settled());
}

/// Trap 24: a duplicate name is told in the client's own words.
#[test]
fn trap_24_a_duplicate_is_told_with_the_clients_name() {
    let mut line = Line::default();
    let ours = Bytes::from_static(b"E...");
    line.expect(Request::Parse, Fate::Substitute(*b"42P05", ours.clone()), 0);
    line.expect(Request::Sync, Fate::Forward, 1);
    assert_eq!(
        line.on_frame(B::ErrorResponse, b"C42P05\0\0").unwrap().action,
        Action::Replace(ours.clone())
    );
    ready(&mut line, b"I");
    line.expect(Request::Parse, Fate::Substitute(*b"42P05", ours), 0);
    assert_eq!(
        line.on_frame(B::ErrorResponse, b"C42601\0\0").unwrap().action,
        Action::Forward
    );
}

/// Trap 49: an error in a simple COPY owes its ReadyForQuery at once, late data is nothing.
#[test]
fn trap_49_an_error_in_a_simple_copy_needs_no_sync() {
    let mut line = Line::default();
    forward(&mut line, &[Request::Query]);
    feed(&mut line, &[B::CopyInResponse]);
    assert!(line.awaits_copy_data());
    feed(&mut line, &[B::ErrorResponse]);
    ready(&mut line, b"I");
    line.copy_ended();
    assert!(line.is_settled());
}

/// Trap 50: libpq's Sync behind the Execute of a COPY is ignored by PostgreSQL; the one behind CopyDone counts.
#[test]
fn trap_50_a_sync_before_the_data_owes_nothing() {
    let mut line = Line::default();
    forward(&mut line, &QUERY_GROUP);
    feed(
        &mut line,
        &[B::ParseComplete, B::BindComplete, B::NoData, B::CopyInResponse],
    );
    line.copy_ended();
    forward(&mut line, &[Request::Sync]);
    feed(&mut line, &[B::CommandComplete]);
    ready(&mut line, b"I");
    assert!(line.is_settled());
}

#[test]
fn trap_50_a_sync_amid_the_data_makes_an_error_doubtful() {
    let mut line = Line::default();
    forward(&mut line, &[Request::Execute]);
    feed(&mut line, &[B::CopyInResponse]);
    forward(&mut line, &[Request::Sync]);
    feed(&mut line, &[B::ErrorResponse]);
    assert!(line.is_doubtful() && !line.is_settled());
}

/// However many a client sends: PostgreSQL never answers them, so nothing would ever take their notes away.
#[test]
fn trap_50_syncs_amid_the_data_leave_nothing_in_memory() {
    let mut line = Line::default();
    forward(&mut line, &[Request::Query]);
    feed(&mut line, &[B::CopyInResponse]);
    forward(&mut line, &[Request::Sync; 1000]);
    assert!(!line.has_dropped());
}

/// Trap 53: one Query may hold several COPYs, the client's ends may be ahead of the responses.
#[test]
fn trap_53_several_copies_in_one_query() {
    let mut line = Line::default();
    forward(&mut line, &[Request::Query]);
    line.copy_ended();
    line.copy_ended();
    forward(&mut line, &[Request::Sync]);
    for _ in 0..2 {
        feed(&mut line, &[B::CopyInResponse]);
        assert!(!line.awaits_copy_data());
        feed(&mut line, &[B::CommandComplete]);
    }
    ready(&mut line, b"I");
    ready(&mut line, b"I");
    assert!(line.is_settled());
}

#[test]
fn a_reply_that_nobody_asked_for_is_a_violation() {
    for tag in [
        B::ReadyForQuery,
        B::ParseComplete,
        B::DataRow,
        B::CommandComplete,
        B::Authentication,
    ] {
        assert!(Line::default().on_frame(tag, b"I").is_err(), "{tag:?}");
    }
    let mut line = Line::default();
    forward(&mut line, &[Request::Bind]);
    assert!(line.on_frame(B::ParseComplete, b"").is_err());
    assert!(line.on_frame(B::ReadyForQuery, b"?").is_err());
}

/// For any interleaving the line never claims to be settled while a reply is owed.
#[test]
fn no_interleaving_settles_while_a_reply_is_owed() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move |bound: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % bound
    };
    for _ in 0..2000 {
        let (mut line, mut owed) = (Line::default(), VecDeque::new());
        let mut sync_sent = true;
        for _ in 0..40 {
            if next(2) == 0 {
                let request = match next(4) {
                    0 => Request::Query,
                    1 => Request::Parse,
                    2 => Request::Execute,
                    _ => Request::Sync,
                };
                // The model sends no Query into an open group: PostgreSQL's own rule for it is tried above.
                if request == Request::Query && !sync_sent {
                    continue;
                }
                if line.expect(request, Fate::Forward, 0) {
                    owed.push_back(request);
                }
                sync_sent = request.ends_with_ready();
            } else if let Some(&request) = owed.front() {
                let failing = next(5) == 0;
                if failing && request.is_extended() {
                    line.on_frame(B::ErrorResponse, b"").unwrap();
                    while owed.front().is_some_and(|request| *request != Request::Sync) {
                        owed.pop_front();
                    }
                    continue;
                }
                owed.pop_front();
                match request {
                    Request::Parse => drop(line.on_frame(B::ParseComplete, b"").unwrap()),
                    Request::Execute => drop(line.on_frame(B::CommandComplete, b"").unwrap()),
                    _ => ready(&mut line, b"I"),
                }
            }
            if line.is_settled() {
                assert!(owed.is_empty() && sync_sent);
            }
        }
    }
}

/// Trap 53: a CopyDone that came early belongs to the COPY whatever we answer ourselves in between.
#[test]
fn trap_53_an_early_copy_done_is_found_behind_answers_of_ours() {
    let mut line = Line::default();
    forward(&mut line, &[Request::Execute]);
    line.expect(Request::Close, Fate::Answer(Bytes::new()), 1);
    line.copy_ended();
    forward(&mut line, &[Request::Sync]);
    feed(&mut line, &[B::CopyInResponse]);
    assert!(!line.awaits_copy_data());
    feed(&mut line, &[B::CommandComplete]);
    assert!(matches!(line.next_due(), Some(Due::Answer(Request::Close, ..))));
    ready(&mut line, b"I");
    assert!(line.is_settled());
}

/// Trap 53: while one COPY ends, a CopyDone is the next one's.
#[test]
fn trap_53_a_second_copy_done_belongs_to_the_second_copy() {
    let mut line = Line::default();
    forward(&mut line, &[Request::Query]);
    line.copy_ended();
    forward(&mut line, &[Request::Execute]);
    feed(&mut line, &[B::CopyInResponse]);
    line.copy_ended();
    forward(&mut line, &[Request::Sync]);
    feed(&mut line, &[B::CommandComplete]);
    ready(&mut line, b"I");
    feed(&mut line, &[B::CopyInResponse]);
    assert!(!line.awaits_copy_data());
    feed(&mut line, &[B::CommandComplete]);
    ready(&mut line, b"I");
    assert!(line.is_settled());
}

/// Trap 50: Syncs ahead of a COPY's data are read by it, behind answers of ours too.
#[test]
fn trap_50_a_sync_behind_an_answer_of_ours_is_read_by_the_copy() {
    let mut line = Line::default();
    forward(&mut line, &[Request::Execute]);
    line.expect(Request::Close, Fate::Answer(Bytes::new()), 1);
    forward(&mut line, &[Request::Sync]);
    feed(&mut line, &[B::CopyInResponse]);
    line.copy_ended();
    forward(&mut line, &[Request::Sync]);
    feed(&mut line, &[B::CommandComplete]);
    assert!(line.next_due().is_some());
    ready(&mut line, b"I");
    assert!(line.is_settled());
}

/// Trap 31: what can begin again is one group alone, its Sync sent or not.
#[test]
fn trap_31_a_group_fails_alone_when_nothing_is_sent_behind_it() {
    use Request::{Bind, Execute, FunctionCall, Query, Sync};
    for (requests, expected) in [
        (&[Bind][..], Some(false)),
        (&[Bind, Execute], Some(false)),
        (&[Bind, Execute, Sync], Some(true)),
        (&[Bind, Execute, Sync, Bind], None),
        (&[Bind, Execute, Sync, Sync], None),
        (&[Bind, Query], None),
        (&[Bind, FunctionCall], None),
        (&[], None),
    ] {
        let mut line = Line::default();
        forward(&mut line, requests);
        assert_eq!(line.fails_alone(), expected, "{requests:?}");
    }
    let mut line = Line::default();
    forward(&mut line, &[Execute]);
    line.copy_ended();
    assert_eq!(line.fails_alone(), None, "the data would have to be sent again");
}

/// What passes by the short way leaves the queue as the long way does, and is nothing that the long way would stop.
#[test]
fn what_passes_unlooked_at_is_what_a_verdict_would_forward() {
    const TAGS: &[u8] = b"123CDTdnsI";
    let mut passed = 0;
    for head in [
        Request::Parse,
        Request::Bind,
        Request::DescribeStatement,
        Request::DescribePortal,
        Request::Execute,
        Request::Close,
        Request::Query,
        Request::FunctionCall,
        Request::Sync,
    ] {
        for fate in [
            Fate::Forward,
            Fate::Swallow,
            Fate::Silence,
            Fate::Substitute(*b"26000", Bytes::new()),
        ] {
            for behind in [
                Fate::Forward,
                Fate::Answer(Bytes::new()),
                Fate::AnswerUnlessFailed(Bytes::new()),
            ] {
                for &tag in TAGS {
                    let line = || {
                        let mut line = Line::default();
                        line.expect(head, fate.clone(), 1);
                        line.expect(Request::Close, behind.clone(), 2);
                        line.expect(Request::Sync, Fate::Forward, 3);
                        line
                    };
                    let (mut short, mut long) = (line(), line());
                    if !short.passes(tag, |_| true) {
                        assert_eq!((short.len(), short.head()), (3, Some(head)), "nothing has changed");
                        continue;
                    }
                    passed += 1;
                    let verdict = long.on_frame(BackendTag::from_byte(tag).unwrap(), b"").unwrap();
                    assert_eq!((verdict.action, verdict.ready), (Action::Forward, None));
                    assert_eq!(verdict.completed.is_some(), short.len() < 3);
                    assert_eq!(
                        format!("{short:?}"),
                        format!("{long:?}"),
                        "{head:?} {}",
                        char::from(tag)
                    );
                }
            }
        }
    }
    assert!(passed >= 2 * 12, "the short way is taken: {passed}");
}

#[test]
fn a_row_that_no_request_at_the_head_can_have_does_not_pass() {
    let mut line = Line::default();
    forward(&mut line, &QUERY_GROUP);
    assert!(!line.passes(b'D', |_| true));
    assert!(line.on_frame(B::DataRow, b"").is_err());
}

#[test]
fn the_end_of_a_copy_does_not_pass_unlooked_at() {
    let mut line = Line::default();
    forward(&mut line, &[Request::Query, Request::Sync]);
    feed(&mut line, &[B::CopyInResponse]);
    assert!(!line.passes(b'C', |_| true));
}

fn bytes_of(frames: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = bytes::BytesMut::new();
    for (tag, body) in frames {
        crate::wire::compose::frame(&mut bytes, *tag, &[body]);
    }
    bytes.to_vec()
}

/// What was sent, and what PostgreSQL may say to it.
const PLAIN_GROUPS: [(&[Request], &[u8]); 7] = [
    (&[Request::Query], b"TDDCZ"),
    (&[Request::Query], b"CTCZ"),
    (&QUERY_GROUP, b"12TDCZ"),
    (&QUERY_GROUP, b"12nCZ"),
    (&[Request::Bind, Request::Execute, Request::Sync], b"2DDCZ"),
    (
        &[Request::Bind, Request::Execute, Request::Execute, Request::Sync],
        b"2CDCZ",
    ),
    (&[Request::Close, Request::Sync], b"3Z"),
];

/// Every change of one frame: left out, said twice, or another one instead.
fn changed(frames: &[u8]) -> Vec<Vec<(u8, &'static [u8])>> {
    const ALL: &[u8] = b"123TtnDCIsZESNAGHWdcKRVxZZ";
    const STATUSES: [&[u8]; 4] = [b"I", b"T", b"E", b"?"];
    let body = |tag: u8, status: usize| if tag == b'Z' { STATUSES[status] } else { b"SELECT 1\0" };
    let plain = |frames: &[u8]| frames.iter().map(|&tag| (tag, body(tag, 0))).collect::<Vec<_>>();
    let mut all = vec![plain(frames)];
    for at in 0..frames.len() {
        let (before, behind) = (plain(&frames[..at]), plain(&frames[at + 1..]));
        let this = plain(&frames[at..=at]);
        all.push([&before[..], &behind].concat());
        all.push([&before[..], &this, &this, &behind].concat());
        for &tag in ALL {
            for status in 0..STATUSES.len() {
                let other = [(tag, body(tag, status))];
                all.push([&before[..], &other, &behind].concat());
                all.push([&before[..], &other, &this, &behind].concat());
            }
        }
    }
    all
}

fn one_by_one(requests: &[Request]) -> Line {
    let mut line = Line::default();
    for (at, request) in requests.iter().enumerate() {
        assert!(line.expect(*request, Fate::Forward, u32::from(at == 0) * 7));
    }
    line
}

fn as_one(requests: &'static [Request]) -> Line {
    let mut line = Line::default();
    line.expect_group(requests, 7);
    line
}

/// What is taken for read in one look comes to what it comes to frame by frame, whatever is said.
#[test]
fn all_replies_at_once_do_what_each_would() {
    let mut taken = 0;
    for (requests, frames) in PLAIN_GROUPS {
        for frames in changed(frames) {
            let (mut short, mut long) = (as_one(requests), one_by_one(requests));
            if !short.are_answered_by(&bytes_of(&frames), |_| true) {
                continue;
            }
            taken += 1;
            let (back, mut back_long) = (short.settle(), 0);
            for (tag, body) in frames {
                let verdict = long.on_frame(BackendTag::from_byte(tag).unwrap(), body).unwrap();
                assert_eq!(verdict.action, Action::Forward);
                back_long += verdict.completed.map_or(0, |(_, note)| note);
            }
            assert!(long.is_settled() && long.take_dropped().is_empty());
            assert_eq!((format!("{short:?}"), back), (format!("{long:?}"), Some(back_long)));
        }
    }
    assert!(taken >= PLAIN_GROUPS.len() * 2, "{taken}");
}

#[test]
fn a_reply_that_is_cut_or_followed_by_another_is_no_end() {
    let all = bytes_of(&[(b'2', b""), (b'C', b"SELECT 1\0"), (b'Z', b"I")]);
    let mut line = as_one(&[Request::Bind, Request::Execute, Request::Sync]);
    assert!(line.are_answered_by(&all, |_| true));
    for len in 0..all.len() {
        assert!(!line.are_answered_by(&all[..len], |_| true), "{len}");
    }
    let behind = [&all[..], b"N"].concat();
    assert!(!line.are_answered_by(&behind, |_| true));
    assert!(!line.are_answered_by(&all, |tag| tag != b"SELECT 1\0"));
    assert!(!line.are_answered_by(b"2\0\0\0\x03", |_| true));
    line.expect(Request::Query, Fate::Forward, 8);
    assert!(!line.are_answered_by(&all, |_| true), "another is owed");
}

/// Whatever is asked of a group that was recorded as one, the answer is that of its messages; and whatever comes next.
#[test]
fn a_group_at_once_is_what_its_messages_are() {
    type Look = fn(&mut Line) -> String;
    const LOOKS: [Look; 17] = [
        |line| {
            line.unfold();
            String::new()
        },
        |line| format!("{} {}", line.is_settled(), line.owes_nothing()),
        |line| format!("{} {} {}", line.is_quiet(), line.is_empty(), line.len()),
        |line| format!("{:?} {:?}", line.head(), line.head_note()),
        |line| format!("{} {}", line.head_is_ours(), line.may_refuse()),
        |line| format!("{:?} {:?}", line.fails_alone(), line.owed()),
        |line| format!("{} {}", line.is_answerable(), line.is_skipping()),
        |line| format!("{:?}", line.next_due()),
        |line| format!("{:?}", line.pending_mut().map(|note| *note).collect::<Vec<_>>()),
        |line| format!("{:?} {:?}", line.abandon(), line.take_dropped()),
        |line| format!("{:?}", line.expect(Request::Parse, Fate::Forward, 9)),
        |line| format!("{:?}", line.expect(Request::Sync, Fate::Answer(Bytes::new()), 9)),
        |line| format!("{}", line.passes(b'1', |_| true)),
        |line| format!("{}", line.passes(b'D', |_| false)),
        |line| format!("{:?}", line.on_frame(B::ErrorResponse, b"C42601\0\0")),
        |line| format!("{:?}", line.on_frame(B::ReadyForQuery, b"I")),
        |line| {
            line.copy_ended();
            line.recycle();
            String::new()
        },
    ];
    for (requests, _) in PLAIN_GROUPS {
        for look in LOOKS {
            let (mut short, mut long) = (as_one(requests), one_by_one(requests));
            assert_eq!(look(&mut short), look(&mut long));
            short.unfold();
            assert_eq!(format!("{short:?}"), format!("{long:?}"));
        }
    }
}
