// The page in the widget's settings.

import QtQuick
import QtQuick.Controls as Controls
import QtQuick.Layouts
import org.kde.kcmutils as KCM
import org.kde.kirigami as Kirigami

KCM.SimpleKCM {
    id: page

    property alias cfg_showNetwork: showNetwork.checked
    property alias cfg_showLoopback: showLoopback.checked
    property alias cfg_showEvents: showEvents.checked
    property alias cfg_eventsShown: eventsShown.value
    property alias cfg_feedNetwork: feedNetwork.checked
    property alias cfg_feedDevices: feedDevices.checked
    property alias cfg_showObjects: showObjects.checked
    property alias cfg_notifyProcesses: notifyProcesses.checked
    property alias cfg_notifyFolders: notifyFolders.checked
    property var cfg_folders: []

    Kirigami.FormLayout {
        Controls.CheckBox {
            id: showNetwork
            text: i18n("Network interfaces")
            Kirigami.FormData.label: i18n("Show:")
        }
        Controls.CheckBox {
            id: showLoopback
            text: i18n("Loopback interface")
            enabled: showNetwork.checked
        }
        Controls.CheckBox {
            id: showObjects
            text: i18n("Relays and endpoints")
        }
        Controls.CheckBox {
            id: showEvents
            text: i18n("Recent events")
        }
        Controls.SpinBox {
            id: eventsShown
            from: 1
            to: 15
            enabled: showEvents.checked
            Kirigami.FormData.label: i18n("Number of recent events:")
        }
        Controls.CheckBox {
            id: feedNetwork
            text: i18n("Events of network interfaces")
            enabled: showEvents.checked
        }
        Controls.CheckBox {
            id: feedDevices
            text: i18n("Events of devices")
            enabled: showEvents.checked
        }
        Controls.CheckBox {
            id: notifyProcesses
            text: i18n("When a process has ended")
            Kirigami.FormData.label: i18n("Notifications:")
        }
        Controls.CheckBox {
            id: notifyFolders
            text: i18n("When a watched folder changes")
        }
        Controls.TextArea {
            text: page.cfg_folders.join("\n")
            placeholderText: i18n("One path in a line")
            onEditingFinished: page.cfg_folders = text.split("\n").map(line => line.trim()).filter(line => line)
            Kirigami.FormData.label: i18n("Watched folders:")
            Layout.minimumWidth: Kirigami.Units.gridUnit * 16
            Layout.minimumHeight: Kirigami.Units.gridUnit * 5
        }
    }
}
