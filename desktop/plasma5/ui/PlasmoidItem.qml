// What Plasma 6 calls the item of a widget. In Plasma 5.27 that is any item, and what it is for Plasma is attached to it.

import QtQuick 2.15
import org.kde.plasma.plasmoid 2.0

Item {
    id: item

    property Component compactRepresentation
    property Component fullRepresentation
    property bool expanded: false
    property int switchWidth: 0
    property int switchHeight: 0
    property string toolTipMainText: ""
    property string toolTipSubText: ""
    property int toolTipTextFormat: 0

    Plasmoid.compactRepresentation: compactRepresentation
    Plasmoid.fullRepresentation: fullRepresentation
    Plasmoid.switchWidth: switchWidth
    Plasmoid.switchHeight: switchHeight
    Plasmoid.toolTipMainText: toolTipMainText
    Plasmoid.toolTipSubText: toolTipSubText
    Plasmoid.toolTipTextFormat: toolTipTextFormat

    onExpandedChanged: Plasmoid.expanded = expanded
    Plasmoid.onExpandedChanged: expanded = Plasmoid.expanded
}
