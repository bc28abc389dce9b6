//! The controller's web page in a headless Chromium, with a switch of Open vSwitch in session.

use std::time::Duration;

use hyper::Method;
use serde_json::json;
use tests::binary;
use tests::browser::Browser;
use tests::holds_within;
use tests::ovs::Ovs;
use xtask::lab::http;
use xtask::lab::process::{Lifetime, Process};

const OPENFLOW: &str = "127.0.0.1:6653";
const REST: &str = "127.0.0.1:8080";
const PATIENCE: Duration = Duration::from_secs(20);

/// The text of a table of the page.
fn rows(table: &str) -> String {
    format!("document.querySelector('#{table} tbody').innerText")
}

#[test]
fn a_network_is_made_and_a_port_attached_with_the_difference_shown_first() {
    let ovs = Ovs::start();
    let directory = tempfile::tempdir().unwrap();
    let mut command = ovs.namespace.command(binary::sluice().to_str().unwrap());
    command.args(["controller", "run", "--state-dir"]).arg(directory.path().join("state"));
    command.arg("--run-dir").arg(directory.path());
    command.args(["--openflow", &format!("tcp:{OPENFLOW}"), "--rest", REST]);
    let log = directory.path().join("controller.log");
    let _controller = Process::start("controller", &command, &log, Lifetime::Ours).unwrap();
    ovs.add_bridge("br1", 1, OPENFLOW);
    let get = |path: &str| {
        let answer = ovs.namespace.enter(|| http::request(REST.parse().unwrap(), Method::GET, path, None));
        answer.ok().and_then(|answer| answer.json().ok())
    };
    let settled = || get("/v1/switches").is_some_and(|list| list["switches"][0]["settled"] == json!(true));
    assert!(holds_within(PATIENCE, settled), "the switch is in session");

    let mut browser = Browser::start(&ovs.namespace);
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
    assert_eq!(get("/v1/networks").unwrap()["networks"], json!([]));
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

    // What was made is shown, entries can be searched, and a wrong wish is answered in words.
    browser.evaluate("location.hash = '#networks'");
    browser.until(&format!("{}.includes('web1')", rows("attachment-list")));
    browser.evaluate("location.hash = '#flows'");
    browser.until(&format!("{}.includes('in_port=7')", rows("flow-list")));
    browser.evaluate("document.querySelector('#flow-search').value = 'table=4 controller'");
    browser.evaluate("document.querySelector('#flow-search').dispatchEvent(new Event('input'))");
    browser.until("document.querySelector('#flow-count').textContent.startsWith('1 of ')");
    browser.evaluate("location.hash = '#new'");
    browser.until("document.body.dataset.view === 'new'");
    browser.evaluate("document.querySelector('#network-form [name=vlan]').value = '5000'");
    browser.evaluate("document.querySelector('#network-form').requestSubmit()");
    browser.until("document.querySelector('#outcome').textContent.includes('out of range')");

    // On a small screen nothing sticks out sideways.
    browser.resize(360, 640);
    for view in ["topology", "networks", "flows", "new"] {
        browser.evaluate(&format!("location.hash = '#{view}'"));
        browser.until(&format!("document.body.dataset.view === '{view}'"));
        browser.until("document.documentElement.scrollWidth <= window.innerWidth");
    }
}
