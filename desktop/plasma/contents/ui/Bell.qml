// Rings when the kernel has something to tell: a netlink socket of one's own, held by the service, from which a message
// is taken with a call that is answered when there is one. What is in it is not looked at, as org.example.IPC.Netlink
// tells the same in words. Where there can be no such socket, it rings every other second.

import QtQuick

QtObject {
    id: bell

    required property Service service
    /** The address of the socket. */
    required property string address

    property string object: ""
    /** Less than what QtDBus waits for an answer, 25 s. */
    readonly property int patience: 20000

    signal rung

    function start() {
        service.call("/org/example/IPC", "", "Attach", "sa{sv}", [`${address},lifetime=client`, {}], made => {
            object = made;
            wait();
        }, () => pause.restart());
    }

    function stop() {
        gathering.stop();
        pause.stop();
        settling.stop();
        object = "";
    }

    function close() {
        if (object)
            service.call(object, "Endpoint", "Close", "", []);
        stop();
    }

    function wait() {
        service.call(object, "Messages", "Receive", "a{sv}u", [{}, patience], () => gathering.restart(), error => {
            if (error.name === "Timeout")
                wait();
            else if (error.name === "Overflow")
                gathering.restart();
            else if (object) {
                // The socket has gone, as when the user's worker on the system bus has, or the service.
                object = "";
                pause.restart();
            }
        });
    }

    /** The kernel tells one thing in several messages; those that follow at once are one ring. */
    readonly property Timer gathering: Timer {
        interval: 50
        onTriggered: bell.service.call(bell.object, "Messages", "Purge", "a{sv}", [{}], () => {
            bell.rung();
            bell.settling.restart();
            bell.wait();
        }, () => {
            bell.object = "";
            bell.pause.restart();
        })
    }

    /** The service may have read the same later than this socket. */
    readonly property Timer settling: Timer {
        interval: 500
        onTriggered: bell.rung()
    }

    readonly property Timer pause: Timer {
        interval: 2000
        onTriggered: {
            bell.rung();
            bell.start();
        }
    }
}
