// A line of the popup: an icon, a title with something below it, a word at the end, perhaps a sparkline and buttons.

import QtQuick
import QtQuick.Layouts
import org.kde.kirigami as Kirigami
import org.kde.plasma.components as PlasmaComponents

RowLayout {
    id: line

    property string icon: ""
    property string title: ""
    property string subtitle: ""
    property string end: ""
    property var values: null
    /** icon, text and clicked() of each. */
    property list<QtObject> actions

    spacing: Kirigami.Units.smallSpacing
    Accessible.role: Accessible.ListItem
    Accessible.name: [title, subtitle, end].filter(text => text).join(", ")

    Kirigami.Icon {
        source: line.icon
        visible: line.icon !== ""
        Layout.preferredWidth: Kirigami.Units.iconSizes.small
        Layout.preferredHeight: Kirigami.Units.iconSizes.small
    }
    ColumnLayout {
        spacing: 0
        Layout.fillWidth: true

        PlasmaComponents.Label {
            text: line.title
            textFormat: Text.PlainText
            elide: Text.ElideMiddle
            Layout.fillWidth: true
        }
        PlasmaComponents.Label {
            text: line.subtitle
            visible: text !== ""
            textFormat: Text.PlainText
            wrapMode: Text.Wrap
            font: Kirigami.Theme.smallFont
            opacity: 0.75
            Layout.fillWidth: true
        }
    }
    Loader {
        active: line.values !== null
        visible: active
        sourceComponent: Sparkline {
            values: line.values
        }
    }
    PlasmaComponents.Label {
        text: line.end
        visible: text !== ""
        textFormat: Text.PlainText
        opacity: 0.75
    }
    Repeater {
        model: line.actions

        PlasmaComponents.ToolButton {
            id: button
            /** An action. Qt 5 breaks where it is called one. */
            required property var modelData

            icon.name: modelData.icon.name
            icon.width: Kirigami.Units.iconSizes.small
            icon.height: Kirigami.Units.iconSizes.small
            text: modelData.text
            display: PlasmaComponents.ToolButton.IconOnly
            onClicked: modelData.trigger()

            PlasmaComponents.ToolTip {
                text: button.text
            }
        }
    }
}
