//! The controller's web page in a headless Chromium, with a switch of Open vSwitch in session.

use serde_json::json;
use tests::browser::Browser;
use tests::fabric::{Fabric, Make, PATIENCE, REST, reaches};
use tests::{binary, holds_within};
use xtask::lab::netns::Namespace;
use xtask::lab::process::{Lifetime, Process, output};

/// The text of a table of the page.
fn rows(table: &str) -> String {
    format!("document.querySelector('#{table} tbody').innerText")
}

#[test]
fn a_network_is_made_and_a_port_attached_with_the_difference_shown_first() {
    let mut fabric = Fabric::new(Make::OpenVSwitch);
    fabric.add_switch(1);
    fabric.settled(1);
    let get = |path: &str| fabric.get(path);

    let mut browser = Browser::start(fabric.namespace());
    browser.open(&format!("http://{REST}/"));
    browser.until(&format!("{}.includes('settled')", rows("switches")));
    browser.until("document.querySelectorAll('#drawing rect').length === 1");

    // Nothing is made before the difference was shown and agreed to.
    browser.evaluate("location.hash = '#new'");
    browser.until("document.body.dataset.view === 'new'");
    browser.evaluate("document.querySelector('#network-form [name=name]').value = 'red'");
    browser.evaluate("document.querySelector('#network-form [name=vlan]').value = '10'");
    browser.evaluate("document.querySelector('#network-form').requestSubmit()");
    browser.until("document.querySelector('#preview-text').textContent.includes('make network red')");
    assert_eq!(get("/v1/networks")["networks"], json!([]));
    assert_eq!(browser.evaluate("document.activeElement.id"), json!("confirm"), "the keyboard is led there");
    browser.evaluate("document.querySelector('#confirm').click()");
    browser.until("document.querySelector('#outcome').textContent.includes('red: applied')");

    for (field, value) in [("name", "web1"), ("network", "red"), ("dpid", "1"), ("port", "7")] {
        browser.evaluate(&format!(
            "document.querySelector('#attachment-form [name={field}]').value = '{value}'"
        ));
    }
    browser.evaluate("document.querySelector('#attachment-form').requestSubmit()");
    browser.until("document.querySelector('#preview-text').textContent.includes('add-flow')");
    browser.evaluate("document.querySelector('#confirm').click()");
    browser.until("document.querySelector('#outcome').textContent.includes('web1: applied')");

    // A number of 64 bits is shown with all its digits.
    let far = json!({"network": "red", "dpid": "0xffffffffffffffff", "port": 1});
    assert_eq!(fabric.put("/v1/attachments/far", &far).0, 202);
    browser.evaluate("location.hash = '#networks'");
    browser.until(&format!("{}.includes('18446744073709551615')", rows("attachment-list")));

    // What was made is shown, entries can be searched, and a wrong wish is answered in words.
    browser.evaluate("location.hash = '#networks'");
    browser.until(&format!("{}.includes('web1')", rows("attachment-list")));
    browser.evaluate("location.hash = '#flows'");
    browser.until(&format!("{}.includes('in_port=7')", rows("flow-list")));
    browser.evaluate("document.querySelector('#flow-search').value = 'table=4 controller'");
    browser.evaluate("document.querySelector('#flow-search').dispatchEvent(new Event('input'))");
    browser.until("document.querySelector('#flow-count').textContent.startsWith('1 of ')");
    // What hosts do: addresses, hits of ACLs, rates of ports.
    let hosts = [1, 2].map(|n| fabric.add_host(1, n));
    let ping = json!({"rules": [{"direction": "egress", "action": "allow", "protocol": "icmp"}]});
    assert_eq!(fabric.put("/v1/acls/ping", &ping).0, 200);
    for (port, acls) in [(1, vec!["ping"]), (2, vec![])] {
        let host = json!({"network": "red", "dpid": 1, "port": port, "acls": acls});
        fabric.apply(&format!("/v1/attachments/host{port}"), &host);
    }
    assert!(reaches(&hosts[0], &hosts[1]));
    for (view, table, seen) in [
        ("addresses", "address-list", r"/02:00:0a:00:00:01\tred\t10\t1\th1/"),
        ("acls", "acl-list", r"/ping\tegress\tprotocol icmp\tallow\t[1-9]/"),
        ("topology", "ports", r"/1\t1\th1\tup\t\d+\t\d+\t[1-9]/"),
    ] {
        browser.evaluate(&format!("location.hash = '#{view}'"));
        browser.until(&format!("document.body.dataset.view === '{view}'"));
        browser.until(&format!("{seen}.test({})", rows(table)));
    }
    // What comes late for another view does not change which one is seen.
    browser.evaluate(
        "document.querySelector('#flow-count').textContent = '';
        window.answer = undefined;
        window.usual = window.fetch;
        window.fetch = async (...what) => {
            window.fetch = window.usual;
            await new Promise(go => window.answer = go);
            return window.usual(...what);
        };
        location.hash = '#flows'",
    );
    browser.until("window.answer !== undefined");
    browser.evaluate("location.hash = '#new'");
    browser.until("document.body.dataset.view === 'new'");
    browser.evaluate("window.answer()");
    browser.until("document.querySelector('#flow-count').textContent !== ''");
    assert_eq!(browser.evaluate("document.body.dataset.view"), "new");
    browser.evaluate("document.querySelector('#network-form [name=vlan]').value = '5000'");
    browser.evaluate("document.querySelector('#network-form').requestSubmit()");
    browser.until("document.querySelector('#outcome').textContent.includes('out of range')");

    // On a small screen nothing sticks out sideways.
    browser.resize(360, 640);
    for view in ["topology", "networks", "flows", "acls", "addresses", "new", "log"] {
        browser.evaluate(&format!("location.hash = '#{view}'"));
        browser.until(&format!("document.body.dataset.view === '{view}'"));
        browser.until("document.documentElement.scrollWidth <= window.innerWidth");
    }
}

#[test]
fn who_has_a_token_says_so_and_sees_what_happens() {
    let namespace = Namespace::new("page").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let mut command = namespace.command(binary::sluice().to_str().unwrap());
    command.args([
        "controller",
        "run",
        "--rest",
        REST,
        "--rest-loopback-role",
        "none",
        "--rest-base",
        "/net",
    ]);
    command.arg("--state-dir").arg(dir.join("state")).arg("--run-dir").arg(dir);
    let _controller = Process::start("controller", &command, &dir.join("log"), Lifetime::Ours).unwrap();
    let sluice = |words: &[&str]| {
        let mut command = namespace.command(binary::sluice().to_str().unwrap());
        output(command.args(words).env("SLUICE_RUN_DIR", dir))
    };
    assert!(holds_within(PATIENCE, || sluice(&["net", "list"]).is_ok()));
    let token = sluice(&["controller", "token", "create", "page", "--role", "operate"]).unwrap();

    let mut browser = Browser::start(&namespace);
    browser.open(&format!("http://{REST}/net/"));
    browser.until("!document.querySelector('#login').hidden");
    let log_in = |browser: &mut Browser, token: &str| {
        browser.evaluate(&format!("document.querySelector('#login [name=token]').value = '{token}'"));
        browser.evaluate("document.querySelector('#login').requestSubmit()");
    };
    log_in(&mut browser, "sluice_0");
    browser.until("document.querySelector('#state').textContent.includes('token is not known')");
    browser.until("!document.querySelector('#login').hidden");
    log_in(&mut browser, token.trim());
    browser.until("document.querySelector('#state').textContent === 'connected'");
    browser.until("document.querySelector('#login').hidden");
    browser.evaluate("location.hash = '#log'");
    browser.until("document.body.dataset.view === 'log'");
    browser.until("document.body.dataset.events === 'open'");
    sluice(&["net", "create", "seen-at-once"]).unwrap();
    browser.until("document.querySelector('#events').innerText.includes('seen-at-once')");
    browser.until(&format!("{}.includes('seen-at-once')", rows("audit")));
}
