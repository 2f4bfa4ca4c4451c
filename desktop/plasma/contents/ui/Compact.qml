// The icon in a panel; faint while there is no service.

import QtQuick
import org.kde.kirigami as Kirigami

MouseArea {
    id: compact

    required property bool present

    signal activated

    hoverEnabled: true
    Accessible.name: i18n("IPC")
    Accessible.role: Accessible.Button
    onClicked: activated()

    Kirigami.Icon {
        anchors.fill: parent
        active: compact.containsMouse
        isMask: true
        color: Kirigami.Theme.textColor
        opacity: compact.present ? 1 : 0.4
        source: Qt.resolvedUrl("../icons/org.example.IPC-symbolic.svg")
    }
}
