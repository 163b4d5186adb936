<?xml version="1.0"?>
<!-- The shop's result becomes what the customer reads. -->
<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
  <xsl:output indent="yes" encoding="UTF-8"/>
  <xsl:param name="user"/>

  <xsl:template match="/result">
    <acknowledgement by="{$user}">
      <customer><xsl:value-of select="@customer"/></customer>
      <xsl:for-each select="line">
        <price of="{@sku}"><xsl:value-of select="."/></price>
      </xsl:for-each>
      <total><xsl:value-of select="@total"/></total>
    </acknowledgement>
  </xsl:template>
</xsl:stylesheet>
