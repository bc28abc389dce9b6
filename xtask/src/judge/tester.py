"""The OpenFlow switch tester of os-ken as `cargo xtask judge ryu` runs it.

Cases and verdicts are those of os_ken.tests.switch.tester. What differs:
- a chosen part of the cases is run, and each verdict is written as a line of JSON to the file JUDGE_OUT;
- the tester's own switch gets its flows once and not before each case: Open vSwitch answers a barrier before its cache
  has followed, and would now and then drop the packet that is waited for;
- where the tester sleeps for a second, in the hope that a packet has arrived, it is asked again until it has;
- packets of the throughput tests are paced by the clock and leave by the interface of the tester's port, if it has one:
  the tester's own loop, a message to its switch for each packet, falls behind its rates;
- random packets are the same ones in each run: with the few of a short run, chance would decide whether a group's shares
  are met;
- what they came to is read when the counters have followed, for the time that was sent: Open vSwitch counts up to half
  a second late, and later on a busy machine.
"""

import json
import os
import random
import socket
import time

from os_ken.lib import hub
from os_ken.tests.switch import tester

tester.INTERVAL = 0
# An answer that is late is still an answer: only cases that fail wait for so long.
tester.WAIT_TIMER = 15

# What is not judged: PBB is optional, and for a changed port of SCTP the cases expect a checksum that is none (they
# compute another one than CRC-32C).
SKIPPED_WORDS = ('pbb', 'itag')
SKIPPED_FILES = ('set_field: 17_SCTP', 'set_field: 18_SCTP')

PART = json.loads(os.environ.get('JUDGE_CASES', 'null'))
SECONDS = os.environ.get('JUDGE_SECONDS')
RATE_MAX = int(os.environ.get('JUDGE_RATE_MAX', '0'))
VHOST_USER = 'JUDGE_VHOST_USER' in os.environ
PATIENCE_S = 3
# Counters that did not move for so long have followed; the longest wait for that.
SETTLE_S = (0.7, 10)


def skipped(file_description, case_description):
    text = (file_description + case_description).lower()
    return (any(word in text for word in SKIPPED_WORDS)
            or any(name in file_description for name in SKIPPED_FILES))


class PacketOuts:
    """Packets by the tester's switch, where its ports are no interfaces."""

    def __init__(self, switch):
        self.datapath = switch.dp
        ofproto, parser = self.datapath.ofproto, self.datapath.ofproto_parser
        message = parser.OFPPacketOut(
            datapath=self.datapath, buffer_id=ofproto.OFP_NO_BUFFER, data=b'', in_port=ofproto.OFPP_CONTROLLER,
            actions=[parser.OFPActionOutput(switch.tester_send_port)])
        self.datapath.set_xid(message)
        message.serialize()
        self.head = bytes(message.buf)

    def send(self, frame):
        length = (len(self.head) + len(frame)).to_bytes(2, 'big')
        self.datapath.send(self.head[:2] + length + self.head[4:] + frame)

    def close(self):
        pass


def too_fast(case):
    rates = [test[tester.KEY_PACKETS][tester.KEY_PKTPS] for test in case.tests if tester.KEY_PACKETS in test]
    return RATE_MAX and max(rates, default=0) > RATE_MAX


class Judge(tester.OfTester):
    # Whether the tester's own switch has the flows that cases begin with.
    settled = False
    # Why the case at hand failed.
    complaint = None
    # When the packets of the throughput test at hand were sent.
    sent_until = None

    def _test(self, state, *args):
        try:
            return self._step(state, *args)
        except (tester.TestFailure, tester.TestError, tester.TestTimeout, tester.TestReceiveError) as error:
            self.complaint = str(error)
            raise

    def _step(self, state, *args):
        if state == tester.STATE_INIT_THROUGHPUT_FLOW:
            if self.settled:
                return None
            self.settled = True
            result = super()._test(state, *args)
            hub.sleep(1)
            return result
        if state == tester.STATE_THROUGHPUT_FLOW_INSTALL:
            self.settled = False
        return super()._test(state, *args)

    def _test_file_execute(self, testfile):
        report = {}
        chosen = [case for case in testfile.tests
                  if not skipped(testfile.description, case.description) and not too_fast(case)]
        for number, case in enumerate(chosen):
            if PART and number % PART[1] != PART[0]:
                continue
            result = self._test_execute(case, None)
            report.setdefault(result, []).append([testfile.description, case.description])
            said = result if result == tester.TEST_OK else self.complaint
            line = {'file': testfile.description, 'case': case.description, 'result': said}
            with open(os.environ['JUDGE_OUT'], 'a') as out:
                out.write(json.dumps(line) + '\n')
        return report

    def _test_end(self, msg=None, report=None):
        open(os.environ['JUDGE_OUT'] + '.done', 'w').close()
        super()._test_end(msg, report)

    def _test_flow_unmatching_check(self, before_stats, pkt):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return super()._test_flow_unmatching_check(before_stats, pkt)
            except tester.TestError:
                if time.monotonic() > deadline:
                    raise
                hub.sleep(0.005)

    def _continuous_packet_send(self, pkt):
        packets = pkt[tester.KEY_PACKETS]
        rate = packets[tester.KEY_PKTPS]
        seconds = float(SECONDS or packets[tester.KEY_DURATION_TIME])
        fixed = None if packets['randomize'] else packets['packet_binary']
        line = self._line()
        random.seed(1)
        start, sent = time.monotonic(), 0
        while True:
            passed = time.monotonic() - start
            due = int(min(passed, seconds) * rate) - sent
            for _ in range(due):
                line.send(fixed or self._random_frame(packets))
            sent += due
            if passed >= seconds:
                self.sent_until = time.time()
                line.close()
                return
            hub.sleep(0.002)

    def _line(self):
        if VHOST_USER:
            return PacketOuts(self.tester_sw)
        # A queue of the kernel's that is full holds us up instead of dropping: the clock decides what is sent.
        line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        line.bind(('o%d' % self.tester_sw.tester_send_port, 0))
        return line

    def _random_frame(self, packets):
        frame = eval('/'.join(packets['packet_text']), vars(tester))
        frame.serialize()
        return bytes(frame.data)

    def _test_get_throughput(self):
        before = super()._test_get_throughput()
        if self.sent_until is None:
            return before
        deadline = time.monotonic() + SETTLE_S[1]
        while time.monotonic() < deadline:
            hub.sleep(SETTLE_S[0])
            now = super()._test_get_throughput()
            if now[1] == before[1]:
                break
            before = now
        sent_until, self.sent_until = self.sent_until, None
        return sent_until, before[1]
