// The widget: what is known, and where it is shown. In a panel it is an icon with a popup, on the desktop it is open.

import QtCore
import QtQuick
import QtQuick.Layouts
import org.kde.kirigami as Kirigami
import org.kde.notification
import org.kde.plasma.core as PlasmaCore
import org.kde.plasma.plasmoid
import "text.js" as Text

PlasmoidItem {
    id: root

    readonly property string home: Text.typedPath(
        StandardPaths.writableLocation(StandardPaths.HomeLocation).toString().replace(/^file:\/\//, ""), "")
    /** On the desktop it is always open. */
    readonly property bool looked: expanded || Plasmoid.formFactor === PlasmaCore.Types.Planar

    Plasmoid.icon: "org.example.IPC"
    Plasmoid.status: ipc.presence === "present" ? PlasmaCore.Types.ActiveStatus : PlasmaCore.Types.PassiveStatus
    switchWidth: Kirigami.Units.gridUnit * 14
    switchHeight: Kirigami.Units.gridUnit * 12
    toolTipMainText: i18n("IPC")
    toolTipSubText: {
        if (ipc.presence !== "present")
            return i18n("The IPC service does not run");
        const links = net.links.filter(link => !link.loopback);
        const lines = links.map(link => `${link.name}: ${[Text.linkState(link.state), ...link.addresses].join(", ")}`);
        const [latest] = lately.lines;
        return [...lines, ...latest ? [latest.text] : []].join("\n");
    }
    toolTipTextFormat: 0

    compactRepresentation: Compact {
        present: ipc.presence === "present"
        onActivated: root.expanded = !root.expanded
    }
    fullRepresentation: Full {
        service: ipc
        network: net
        folders: followed
        processes: awaited
        objects: held
        feed: lately
        home: root.home
        Layout.minimumWidth: Kirigami.Units.gridUnit * 20
        Layout.minimumHeight: Kirigami.Units.gridUnit * 16
        Layout.preferredWidth: Kirigami.Units.gridUnit * 24
        Layout.preferredHeight: Kirigami.Units.gridUnit * 38
    }

    onLookedChanged: {
        if (looked && ipc.presence === "present")
            net.refresh();
        else if (looked)
            ipc.lookAgain();
    }

    Component.onDestruction: {
        followed.close();
        awaited.close();
    }

    /** Debugging, off unless QT_LOGGING_RULES has org.example.ipc.debug=true: what the widget knows. */
    LoggingCategory {
        id: log
        name: "org.example.ipc"
        defaultLogLevel: LoggingCategory.Warning
    }

    Service {
        id: ipc
        onArrived: {
            net.start();
            followed.start();
            awaited.start();
        }
        onLeft: {
            net.stop();
            followed.stop();
            held.stop();
        }
        onPresenceChanged: console.debug(log, "service", presence, kind)
    }
    Network {
        id: net
        service: ipc
        onHappened: (what, it) => lately.happened(what, it)
        onLinksChanged: links.forEach(link => console.debug(log, "link", link.name, link.state, link.addresses.join(" ")))
    }
    Folders {
        id: followed
        service: ipc
        wanted: Plasmoid.configuration.folders.filter(path => path)
        onHappened: (events, path, from) => {
            const text = lately.folder(events, path, from);
            if (text && Plasmoid.configuration.notifyFolders)
                notify.tell(text, "");
        }
        onWatchesChanged: watches.forEach(it => console.debug(log, "folder", it.path, it.object ? "watched" : it.error))
    }
    Processes {
        id: awaited
        service: ipc
        onEnded: (name, code, signal) => {
            const status = Text.exitStatus(code, signal);
            lately.process(name, status);
            if (Plasmoid.configuration.notifyProcesses)
                notify.tell(i18n("%1 has ended", name), status);
        }
        onWatchedChanged: watched.forEach(it => console.debug(log, "process", it.name, it.pid))
    }
    Objects {
        id: held
        service: ipc
        open: root.looked
        onEndpointsChanged: endpoints.filter(it => it.depth !== null).forEach(it =>
            console.debug(log, "endpoint", it.address, it.depth, it.bytes ? "bytes" : "messages"))
        onRelaysChanged: relays.forEach(relay => console.debug(log, "relay", relay.path, relay.state, relay.rate))
    }
    Feed {
        id: lately
        networkWanted: Plasmoid.configuration.feedNetwork
        devicesWanted: Plasmoid.configuration.feedDevices
        home: root.home
        onAdded: text => console.debug(log, "event", text)
    }

    Component {
        id: notification
        Notification {
            componentName: "plasma_workspace"
            eventId: "notification"
            iconName: "org.example.IPC"
            autoDelete: true
        }
    }
    QtObject {
        id: notify
        function tell(title, text) {
            notification.createObject(root, {title, text}).sendEvent();
        }
    }
}
