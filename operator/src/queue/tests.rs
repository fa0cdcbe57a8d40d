use super::*;

fn key(name: &str) -> DesktopKey {
    DesktopKey::new("demo", name)
}

fn rank(name: &str, priority: i32, since: i64) -> Rank {
    Rank::new(&key(name), priority, since, 0)
}

#[expect(clippy::disallowed_methods, reason = "there is no other way to make an Instant")]
fn start() -> Instant {
    Instant::now()
}

/// A queue in which everybody had a turn.
fn settled(ranks: impl IntoIterator<Item = Rank>) -> Queue<()> {
    let mut queue = Queue::default();
    for rank in ranks {
        queue.enter(rank, (), start());
    }
    while queue.next_turn().is_some() {}
    queue
}

fn turns(queue: &mut Queue<()>) -> Vec<String> {
    std::iter::from_fn(|| queue.next_turn()).map(|key| key.name).collect()
}

#[test]
fn the_more_important_goes_first_then_who_waits_longer_then_the_older() {
    let mut queue = settled([
        rank("late", 0, 20),
        rank("early", 0, 10),
        rank("important", 5, 30),
        Rank::new(&key("young"), 0, 20, 2),
        Rank::new(&key("younger"), 0, 20, 3),
    ]);
    assert!(queue.is_settled());
    queue.freed();
    assert_eq!(turns(&mut queue), ["important", "early", "late", "young", "younger"]);
    assert_eq!(turns(&mut queue), [""; 0], "what is free is offered once");
    queue.enter(rank("late", 9, 20), (), start());
    queue.freed();
    assert_eq!(turns(&mut queue)[0], "late");
    assert_eq!(queue.len(), 5);
}

#[test]
fn a_newcomer_is_asked_alone_and_in_its_turn_of_a_walk() {
    let mut queue = settled([rank("a", 0, 1), rank("c", 0, 3)]);
    queue.enter(rank("b", 0, 2), (), start());
    assert_eq!(turns(&mut queue), ["b"]);
    queue.freed();
    queue.enter(rank("d", 0, 0), (), start());
    assert_eq!(queue.next_turn(), Some(key("d")));
    assert_eq!(queue.next_turn(), Some(key("a")));
    // One that comes before those who had their turn is asked, and nobody after it is left out.
    queue.enter(rank("e", 0, 0), (), start());
    assert_eq!(turns(&mut queue), ["e", "b", "c"]);
}

#[test]
fn what_is_freed_during_a_walk_is_offered_from_the_first_on_and_the_last_have_their_turn_all_the_same() {
    let names: Vec<String> = (0..50).map(|number| format!("d{number:02}")).collect();
    let mut queue = settled(names.iter().zip(0..).map(|(name, since)| rank(name, 0, since)));
    queue.freed();
    queue.next_turn();
    queue.next_turn();
    queue.freed();
    assert_eq!(queue.next_turn(), Some(key("d00")), "from the first on");
    let mut asked = 0;
    while queue.next_turn() != Some(key("d49")) {
        queue.freed();
        asked += 1;
        assert!(asked < 1000, "the last never has its turn");
    }
    assert_eq!(queue.next_turn(), Some(key("d00")), "what was freed since is offered too");
}

#[test]
fn what_found_no_room_finds_none_until_something_is_freed() {
    let request = |home: Option<&str>| Request {
        desktop: key("x"),
        labels: BTreeMap::new(),
        affinity: vec![],
        home: home.map(str::to_owned),
        previous: None,
        demand: Arc::default(),
    };
    let mut queue = settled([]);
    queue.found_none(&request(None), false);
    assert!(queue.is_hopeless(&request(None), false));
    assert!(!queue.is_hopeless(&request(None), true), "room that is kept may do");
    assert!(!queue.is_hopeless(&request(Some("a")), false), "its home has what it left there");
    queue.found_none(&request(None), true);
    assert!(queue.is_hopeless(&request(None), true) && queue.is_hopeless(&request(None), false));
    queue.freed();
    assert!(!queue.is_hopeless(&request(None), false));
}

#[test]
fn a_changed_message_waits_its_time() {
    let now = start();
    let mut queue = settled([rank("a", 0, 1)]);
    assert_eq!(queue.may_say(&key("a"), now), Duration::ZERO);
    queue.enter(rank("a", 0, 1), (), now);
    assert_eq!(queue.may_say(&key("a"), now + Duration::from_secs(4)), Duration::from_secs(6));
    assert_eq!(queue.may_say(&key("a"), now + Duration::from_secs(10)), Duration::ZERO);
}

#[test]
fn everybody_is_looked_at_once_after_something_was_freed_and_none_too_soon() {
    let before = start();
    let mut queue = settled([rank("a", 0, 1), rank("b", 0, 2), rank("c", 0, 3)]);
    let now = start();
    let after = |seconds| now + Duration::from_secs(seconds);
    assert_eq!(
        queue.to_look_at(before, after(20), 5),
        (vec![], false),
        "nothing is newer than what they know"
    );
    assert_eq!(queue.to_look_at(after(1), after(2), 5), (vec![], true), "they were told something just now");
    assert_eq!(queue.to_look_at(after(1), after(10), 2), (vec![key("a"), key("b")], true));
    assert_eq!(queue.to_look_at(after(1), after(12), 2), (vec![key("c")], false));
    assert_eq!(queue.to_look_at(after(1), after(60), 2), (vec![], false));
}

#[test]
fn where_many_wait_each_says_less_often_why_and_all_have_their_turn() {
    let names: Vec<String> = (0..1000).map(|number| format!("d{number:04}")).collect();
    let now = start();
    let mut queue = settled(names.iter().map(|name| rank(name, 0, 1)));
    let begun = start();
    let mut looked_at = vec![0; 1000];
    // Something is freed all the time.
    for round in 1..100 {
        let at = begun + Duration::from_secs(2 * round);
        for key in queue.to_look_at(at, at, 32).0 {
            looked_at[key.name[1..].parse::<usize>().unwrap()] += 1;
        }
    }
    assert_eq!((looked_at.iter().min(), looked_at.iter().max()), (Some(&1), Some(&1)));
    assert_eq!(queue.may_say(&key("d0000"), now), Duration::ZERO);
    assert_eq!(queue.may_say(&key("d0000"), now), Duration::from_secs(100));
}

#[test]
fn room_is_kept_from_those_who_come_after_the_one_it_is_kept_for() {
    let mut queue = settled([rank("first", 0, 1), rank("big", 0, 2), rank("small", 0, 3)]);
    assert_eq!(queue.long_waiting(2, |key, ()| key.name != "first"), Some(key("big")));
    assert_eq!(queue.long_waiting(0, |_, ()| true), None);
    queue.favour(Some(&key("big")));
    assert!(queue.goes_before_kept(&key("first")) && queue.goes_before_kept(&key("big")));
    assert!(!queue.goes_before_kept(&key("small")));
    queue.enter(rank("big", 0, 2), (), start());
    assert_eq!(queue.favoured(), Some(&key("big")), "it asks again");
    queue.leave(&key("big"));
    assert_eq!(queue.favoured(), None);
    assert!(queue.goes_before_kept(&key("small")));
}
