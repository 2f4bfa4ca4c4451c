// A field for something to begin with, and what is wrong with it.

import QtQuick
import QtQuick.Layouts
import org.kde.kirigami as Kirigami
import org.kde.plasma.components as PlasmaComponents

ColumnLayout {
    id: entry

    required property string placeholder
    required property string icon
    property string trouble: ""

    signal entered(string text)

    function clear() {
        field.clear();
        trouble = "";
    }

    spacing: 0
    Layout.fillWidth: true

    RowLayout {
        PlasmaComponents.TextField {
            id: field
            placeholderText: entry.placeholder
            Accessible.name: entry.placeholder
            Layout.fillWidth: true
            onTextEdited: entry.trouble = ""
            onAccepted: entry.entered(text.trim())
        }
        PlasmaComponents.ToolButton {
            icon.name: entry.icon
            enabled: field.text.trim() !== ""
            Accessible.name: entry.placeholder
            onClicked: field.accepted()
        }
    }
    PlasmaComponents.Label {
        text: entry.trouble
        visible: text !== ""
        textFormat: Text.PlainText
        wrapMode: Text.Wrap
        font: Kirigami.Theme.smallFont
        color: Kirigami.Theme.negativeTextColor
        Layout.fillWidth: true
    }
}
