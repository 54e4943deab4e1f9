//! Shared limits: their scripts beside the rule, and who divides them.

use super::*;

#[test]
fn moments_of_a_shared_limit_are_given_once_whoever_asks() {
    on_server(async |_, control| {
        let flow = Flow { units: 1000, per: Duration::from_secs(1), burst: 5 };
        let began = Instant::now();
        // The first may use the burst; then each goes on where the other ended, up to a second ahead.
        let mut ahead_us = 0;
        let mut given = 0;
        loop {
            match control.reserve("*/mx.example.org", flow, 100).await.unwrap() {
                Reserved::Moments { count, first_in_us } => {
                    assert!(given > 0 || first_in_us == -4_000, "{first_in_us}");
                    given += count;
                    ahead_us = first_in_us;
                }
                Reserved::Later(wait) => {
                    assert!(wait <= Duration::from_millis(1), "{wait:?}");
                    break;
                }
            }
            assert!(began.elapsed() < Duration::from_secs(20), "it ends at the horizon");
        }
        // A second ahead, the burst, and what came due while it was asked.
        let due = u32::try_from(began.elapsed().as_millis()).unwrap();
        assert!((1005..=1006 + due).contains(&given), "{given}, {due} ms");
        assert!(ahead_us > 0 && ahead_us <= 1_000_000);
        // Another limit is another account, and its name may be anything.
        let other = control.reserve(&"{x}".repeat(100), flow, 1).await.unwrap();
        assert_eq!(other, Reserved::Moments { count: 1, first_in_us: -4_000 });
        let none = Flow { units: 0, ..flow };
        assert!(matches!(control.reserve("x", none, 1).await, Err(ValkeyError::Refused(_))));
        assert!(matches!(control.charge("x", none, 1).await, Err(ValkeyError::Refused(_))));
    });
}

#[test]
fn the_scripts_of_shared_limits_do_what_the_rule_says() {
    on_server(async |_, control| {
        // An hour to a unit: the server's clock moves by next to nothing meanwhile.
        let hour = Duration::from_secs(3600);
        let flow = Flow { units: 1, per: hour, burst: 5 };
        let (mut account, near) = (Account::default(), |a: Duration, b: Duration| a.abs_diff(b) < Duration::from_secs(30));
        for cost in [1, 2, 1, 1, 3, 1, 100, 1] {
            let (said, expected) = (control.charge("a", flow, cost).await.unwrap(), account.charge(flow, cost, 1 << 50));
            assert!(near(said, expected), "{cost}: {said:?} {expected:?}");
        }
        let mut account = Account::default();
        for wanted in [2, 1, 7, 1] {
            let (said, expected) = (control.reserve("b", flow, wanted).await.unwrap(), account.reserve(flow, wanted, 1 << 50));
            match (said, expected) {
                (Reserved::Moments { count, first_in_us }, Reserved::Moments { count: other, first_in_us: at }) => {
                    assert!(count == other && first_in_us.abs_diff(at) < 30_000_000, "{said:?} {expected:?}");
                }
                (Reserved::Later(wait), Reserved::Later(other)) => assert!(near(wait, other), "{wait:?} {other:?}"),
                _ => panic!("{said:?} {expected:?}"),
            }
        }
    });
}

#[test]
fn moments_given_twice_would_be_noticed() {
    // The control: nothing is written down.
    let scripts = mutant("throttle_reserve", "redis.call('SET', KEYS[1]", "redis.call('SET', KEYS[1] .. 'x'");
    let twice = on_server_with(scripts, async |_, control| {
        let flow = Flow { units: 1, per: Duration::from_secs(3600), burst: 1 };
        let first = control.reserve("a", flow, 1).await.unwrap();
        first == control.reserve("a", flow, 1).await.unwrap()
    });
    assert!(twice);
}

#[test]
fn charges_that_are_forgotten_would_be_noticed() {
    // The control: nothing is written down, and what follows a full charge may pass.
    let passes = |scripts| {
        on_server_with(scripts, async |_, control| {
            let flow = Flow { units: 1, per: Duration::from_secs(3600), burst: 2 };
            control.charge("a", flow, 2).await.unwrap();
            control.charge("a", flow, 1).await.unwrap() <= Duration::from_secs(3600)
        })
    };
    assert!(!passes(Scripts::shipped()), "three of two: closed for two hours");
    assert!(passes(mutant("throttle_charge", "redis.call('SET', KEYS[1]", "redis.call('SET', KEYS[1] .. 'x'")));
}

#[test]
fn only_the_leader_divides_shared_limits() {
    on_server(async |server, control| {
        let leader = |epoch| Leadership { incarnation: me(2), epoch: Epoch(epoch) };
        assert_eq!(pulse(&control, 1, 4, true).await.shares, None);
        assert_eq!(control.write_shares(&leader(3), Shares::of(3, 1)).await.unwrap(), Err(Epoch(4)));
        let said = Division { by: leader(4), shares: Shares { nodes: 3, connected_permille: 666 } };
        for _ in 0..2 {
            assert!(control.write_shares(&leader(4), Shares::of(3, 1)).await.unwrap().is_ok());
            assert_eq!(pulse(&control, 1, 4, false).await.shares.as_ref(), Some(&said));
        }
        // A Valkey that lost the epoch takes a former leader's word until the first heartbeat; each node knows whose it is.
        server.restart();
        while control.write_shares(&leader(3), Shares::of(2, 0)).await.is_err() {}
        let said = pulse(&control, 1, 4, true).await.shares.unwrap();
        assert_eq!(said.shares, Shares::of(2, 0));
        assert_eq!(Fence::new(Some(leader(4))).judge(&said.by), Verdict::Stale(Epoch(4)));
    });
}
